"""LoRA adapters: attaching them to a base model, their initial values, and saving and loading them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, cast

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from engine.config.job import Lora

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_NAME = "default"


def attach_lora(
    model: PreTrainedModel,
    lora: Lora,
    *,
    model_dir: Path,
    base_id: str,
    revision: str,
    quantised: bool,
    gradient_checkpointing: bool,
    resume_from: Path | None = None,
) -> PeftModel:
    """Freezes `model`, read from `model_dir`, and adds trainable LoRA adapters to its linear layers.

    The adapter names `base_id` and `revision` as its base, not the folder that the model was read from. Only a
    quantised base is prepared for k-bit training, which would needlessly double the memory of any other.

    With initial values that change the base weights (PiSSA, OLoRA), what is saved is converted to an adapter of twice
    the rank for the unchanged base, and the weights of the checkpoint `resume_from` are loaded here. For all others the
    caller loads them.
    """
    if quantised:
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    initial: str | bool = lora.init_lora_weights
    if initial in ("default", "loftq") or (lora.changes_base and resume_from):
        initial = True
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
            use_dora=lora.use_dora,
            init_lora_weights=initial,  # type: ignore[arg-type]
            target_modules=_targets(model, lora),
            layers_to_transform=lora.layers_to_transform or None,
            modules_to_save=lora.modules_to_save or None,
            trainable_token_indices=_token_ids(lora, model_dir) or None,
            # Otherwise a tied head and embedding would be trained apart, and could not be merged again.
            ensure_weight_tying=bool({"lm_head", "embed_tokens"} & {*lora.modules_to_save})
            and bool(model.config.tie_word_embeddings),
        ),
    )
    config = cast(LoraConfig, adapted.peft_config[_NAME])
    config.base_model_name_or_path = base_id
    config.revision = revision
    if isinstance(config.target_modules, set):
        # The order of a set differs between processes, and so would the file that peft writes it to.
        config.target_modules = sorted(config.target_modules)
    taken: _TakenFromBase | None = None
    if lora.changes_base:
        taken = _TakenFromBase.restore(adapted, resume_from) if resume_from else _TakenFromBase.of(adapted)
    elif lora.init_lora_weights == "loftq" and not resume_from:
        _compensate_quantisation(adapted, model_dir)
    save = adapted.save_pretrained

    def save_pretrained(folder: str | Path, **options: Any) -> None:
        # By default peft would ask the hub whether the vocabulary of the base was resized, which never happens here.
        save(str(folder), save_embedding_layers=False, **options)
        if taken:
            taken.convert(Path(folder))

    adapted.save_pretrained = save_pretrained  # type: ignore[method-assign, assignment]
    return adapted


def load_adapter(model: PreTrainedModel, adapter_dir: Path) -> PeftModel:
    """Adds a saved adapter to `model`, for inference.

    Raises FileNotFoundError without adapter_model.safetensors; peft would look for a pickle instead, then on the hub.
    """
    if not (adapter_dir / _WEIGHTS).is_file():
        raise FileNotFoundError(f"no {_WEIGHTS} in {adapter_dir.name}")
    adapted = PeftModel.from_pretrained(model, str(adapter_dir), is_trainable=False)
    adapted.eval()
    return adapted


def _targets(model: PreTrainedModel, lora: Lora) -> str | list[str]:
    if lora.target_modules_pattern is not None:
        return lora.target_modules_pattern
    if lora.target_modules:
        return lora.target_modules
    if not lora.layers_to_transform:
        # The string, not a list with it: peft expands it to every linear layer except the head.
        return "all-linear"
    # peft does not expand it together with layers_to_transform.
    head = model.get_output_embeddings()
    linear = (
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head
    )
    return sorted({name.rpartition(".")[2] for name in linear})


def _token_ids(lora: Lora, model_dir: Path) -> list[int]:
    if not lora.trainable_tokens:
        return []
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(model_dir / "tokenizer.json")).get_vocab(with_added_tokens=True)
    return [ids[token] for token in lora.trainable_tokens]


def _layers(adapted: PeftModel) -> Iterator[tuple[str, Any]]:
    """Yields the layers with adapters by their paths in the base model."""
    prefix = "base_model.model."
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer):
            yield name.removeprefix(prefix), module


class _TakenFromBase:
    """The initial adapters of PiSSA and OLoRA, whose product was subtracted from the base weights.

    With W' = W - sBA, the trained model is W' + sB'A' = W + s[B' | -B][A' ; A]: an adapter of twice the rank on the
    unchanged base. The file of such an adapter contains the initial values, so a checkpoint needs nothing else.
    """

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors

    @classmethod
    def of(cls, adapted: PeftModel) -> Self:
        """Copies the current adapters, which must not be trained yet, to main memory."""
        state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        return cls({name: value.detach().cpu().clone() for name, value in state.items() if "lora_" in name})

    @classmethod
    def restore(cls, adapted: PeftModel, folder: Path) -> Self:
        """Loads a checkpoint written by `convert` into new adapters, and changes the base weights as at the start."""
        stored, initial = load_file(folder / _WEIGHTS), {}
        for name, layer in _layers(adapted):
            first, second = f"base_model.model.{name}.lora_A.weight", f"base_model.model.{name}.lora_B.weight"
            stored[first], initial[first] = (part.clone() for part in stored[first].chunk(2, dim=0))
            stored[second], negative = (part.clone() for part in stored[second].chunk(2, dim=1))
            initial[second] = -negative
            weight = layer.get_base_layer().weight
            a, b = initial[first].to(weight.device), initial[second].to(weight.device)
            # The operations and their order are peft's, so that the weights are the same bits.
            weight.data = (weight.data.to(torch.float32) - layer.scaling[_NAME] * b @ a).to(weight.dtype)
        set_peft_model_state_dict(adapted, stored)
        return cls(initial)

    def convert(self, folder: Path) -> None:
        """Rewrites the adapter that was just saved in `folder` as one for the unchanged base."""
        tensors = load_file(folder / _WEIGHTS)
        for name, value in tensors.items():
            if ".lora_A." in name:
                tensors[name] = torch.cat([value, self._tensors[name]], dim=0)
            elif ".lora_B." in name:
                tensors[name] = torch.cat([value, -self._tensors[name]], dim=1)
        save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
        config = json.loads((folder / _CONFIG).read_text("utf-8"))
        # The factor alpha / r stays the same; with rsLoRA it is alpha / √r.
        grows = 2**0.5 if config["use_rslora"] else 2
        config |= {"r": 2 * config["r"], "lora_alpha": grows * config["lora_alpha"], "init_lora_weights": True}
        (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def _compensate_quantisation(adapted: PeftModel, model_dir: Path) -> None:
    """Sets the adapters to the best approximation, of their rank, of what quantisation has changed (LoftQ, arXiv
    2310.08659, one iteration).

    peft's own function needs a GPU, and ignores the scaling of the adapters.
    """
    stored = _StoredWeights(model_dir)
    for name, layer in _layers(adapted):
        quantised = dequantize_module_weight(layer.get_base_layer()).float()
        lost = stored.read(f"{name}.weight").to(quantised) - quantised
        left, values, right = torch.linalg.svd(lost, full_matrices=False)
        rank, root = layer.r[_NAME], values.sqrt()
        layer.lora_A[_NAME].weight.data.copy_(root[:rank, None] * right[:rank])
        layer.lora_B[_NAME].weight.data.copy_(left[:, :rank] * root[:rank] / layer.scaling[_NAME])


class _StoredWeights:
    """The tensors of a model folder, read one at a time."""

    def __init__(self, model_dir: Path) -> None:
        self._files: dict[str, Path] = {}
        for file in sorted(model_dir.glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                self._files |= dict.fromkeys(opened.keys(), file)

    def read(self, name: str) -> torch.Tensor:
        """Returns the tensor of this name, or of one that differs by its first part, the name of the whole model."""
        short = re.sub(r"^[^.]*\.", "", name)
        found = next(known for known in (name, short, f"model.{name}") if known in self._files)
        with safe_open(self._files[found], "pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(found)
        return tensor
