"""Loads a base model into memory: number format, quantisation, attention.

Only safetensors are loaded, and code that ships with a model is never run.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from engine.config.job import AttentionImplementation, Method, Precision, Quantization
from engine.errors import JobError
from engine.inl.auto_classes import register_inl
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


def load_base(
    model_dir: Path,
    *,
    dtype: torch.dtype,
    on: Device,
    quantization: Quantization | None = None,
    attention: AttentionImplementation = "auto",
) -> Any:
    """Loads the causal language model of a Hugging Face folder, in evaluation mode, on one device.

    With `quantization` all linear layers except the head have 4 or 8 bits. `dtype` is then the format of all other
    weights, and of the computation unless the quantisation sets another. `auto` and `sdpa` attention become eager for a
    model that supports only that.

    Raises JobError: NOT_A_MODEL if transformers cannot use the model's settings; BAD_WEIGHTS if the files lack a tensor
    or have one of another shape, which would be random, or values that are not finite.
    """
    register_inl()
    config = None if quantization is None else _bitsandbytes(quantization, dtype)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model_dir,
            dtype=dtype,
            quantization_config=config,
            # None: transformers chooses sdpa for every model that supports it.
            attn_implementation=None if attention in ("auto", "sdpa") else attention,
            device_map={"": torch.cuda.current_device() if on == "cuda" else "cpu"},
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (AttributeError, LookupError, StrictDataclassError, TypeError, ValueError) as error:
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
        if on == "cpu":
            _release_file(model)
    model.eval()
    return model


def _release_file(model: Any) -> None:
    """Copies the weights that are not quantised out of the mapped safetensors file.

    A single weight in the mapping keeps all of the file's pages, those of quantised weights too, in the process's
    resident memory.
    """
    for weights in model.parameters():
        if weights.is_floating_point():
            weights.data = weights.data.clone()


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


def _bitsandbytes(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig:
    if quantization.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=_COMPUTE.get(quantization.bnb_4bit_compute_dtype, dtype),
    )
