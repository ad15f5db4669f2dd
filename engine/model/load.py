"""Loads a base model into memory: number format, quantisation, adapter.

Only safetensors are loaded, and code that ships with a model is never run.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from engine.config.job import Lora, Method, Precision, Quantization
from engine.errors import JobError
from engine.model_folder import model_error

Device = Literal["cpu", "cuda"]

_ANOTHER = "Use another base model or revision."
_COMPUTE: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def device() -> Device:
    """Returns the device for models in this process: the first visible GPU, otherwise the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def weights_dtype(method: Method, precision: Precision, on: Device) -> torch.dtype:
    """Returns the number format of the weights.

    On a CPU it is always float32: with precision bf16 autocast is used, which is faster there than bfloat16 weights.
    Weights that are trained themselves (method full) are also float32: with bfloat16's 8 significant bits most updates
    at common learning rates round to zero. Frozen weights on a GPU have the format of the computation.
    """
    if precision == "auto" or method == "auto":
        raise ValueError("method and precision must be resolved before a model is loaded")
    if on == "cpu" or method == "full":
        return torch.float32
    return _COMPUTE[precision]


def load_base(model_dir: Path, *, dtype: torch.dtype, on: Device, quantization: Quantization | None = None) -> Any:
    """Loads the causal language model of a Hugging Face folder, in evaluation mode, on one device.

    With `quantization` all linear layers except the head have 4 or 8 bits. `dtype` is then the format of all other
    weights, and of the computation unless the quantisation sets another.

    Raises JobError: NOT_A_MODEL if transformers cannot use the model's settings; BAD_WEIGHTS if the files lack a tensor
    or have one of another shape, which would be random, or values that are not finite.
    """
    config = None if quantization is None else _bitsandbytes(quantization, dtype)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model_dir,
            dtype=dtype,
            quantization_config=config,
            device_map={"": 0 if on == "cuda" else "cpu"},
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # What transformers raises for a setting of an unknown name or a wrong type depends on where it reads it.
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200].rstrip('.')}"
        raise model_error("NOT_A_MODEL", f"transformers cannot load the base model: {said}.", _ANOTHER) from error
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise _bad_weights(f"they lack {len(missing)} tensors, such as {missing[0]}")
    if wrong := sorted(name for name, *_ in found["mismatched_keys"]):
        raise _bad_weights(f"{len(wrong)} of their tensors have other shapes than config.json says, such as {wrong[0]}")
    for name, weights in model.named_parameters():
        # Not the sum, which may overflow; NaN is both the least and the greatest value.
        if weights.is_floating_point() and weights.numel() and not _are_finite(torch.aminmax(weights.detach())):
            raise _bad_weights(f"{name} has values that are not finite")
    if quantization is not None:
        keep_differentiable(model)
    model.eval()
    return model


def _are_finite(values: Iterable[torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(value)) for value in values)


def _bad_weights(problem: str) -> JobError:
    message = f"The base model's weights are damaged: {problem}."
    return model_error("BAD_WEIGHTS", message, f"Fetch the model again. {_ANOTHER}")


def keep_differentiable(model: torch.nn.Module) -> None:
    """Stops bitsandbytes from repacking 4-bit layers on CPUs with avx512_bf16.

    The first forward pass in evaluation mode would convert them to a layout without autograd support; later training
    would have no gradients through the base layers, and raise no error.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def attach_lora(
    model: PreTrainedModel,
    lora: Lora,
    *,
    base_id: str,
    revision: str,
    quantised: bool,
    gradient_checkpointing: bool,
) -> PeftModel:
    """Freezes `model` and adds trainable LoRA adapters to its linear layers.

    The adapter names `base_id` and `revision` as its base, not the folder that the model was read from. Only a
    quantised base is prepared for k-bit training, which would needlessly double the memory of any other.
    """
    if quantised:
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.r,
            # A whole number stays an integer in adapter_config.json; peft also accepts a float, despite its type hint.
            lora_alpha=int(lora.lora_alpha) if lora.lora_alpha.is_integer() else lora.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=lora.lora_dropout,
            bias=lora.bias,
            use_rslora=lora.use_rslora,
            # The string, not a list with it: peft expands it to every linear layer except the head.
            target_modules=lora.target_modules or "all-linear",
        ),
    )
    config = cast(LoraConfig, adapted.peft_config["default"])
    config.base_model_name_or_path = base_id
    config.revision = revision
    if isinstance(config.target_modules, set):
        # The order of a set differs between processes, and so would the file that peft writes it to.
        config.target_modules = sorted(config.target_modules)
    # At every save peft would ask the hub whether the vocabulary of the base was resized, which never happens here.
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)  # type: ignore[method-assign]
    return adapted


def load_adapter(model: PreTrainedModel, adapter_dir: Path) -> PeftModel:
    """Adds a saved adapter to `model`, for inference.

    Raises FileNotFoundError without adapter_model.safetensors; peft would look for a pickle instead, then on the hub.
    """
    if not (adapter_dir / "adapter_model.safetensors").is_file():
        raise FileNotFoundError(f"no adapter_model.safetensors in {adapter_dir.name}")
    adapted = PeftModel.from_pretrained(model, str(adapter_dir), is_trainable=False)
    adapted.eval()
    return adapted


def _bitsandbytes(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig:
    if quantization.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=_COMPUTE.get(quantization.bnb_4bit_compute_dtype, dtype),
    )
