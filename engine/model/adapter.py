"""LoRA adapters: attaching them to a base model, their initial values, and saving and loading them."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer, LoraModel
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from engine.config.job import Lora, StartMode
from engine.config.start import saved_alpha

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_NAME = "default"
_START = "start"
"""Name of an adapter that is not trained, below the trained one."""
_Tensors: TypeAlias = dict[str, torch.Tensor]
"""The tensors of an adapter, by their names in its file."""


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
    start_from: Path | None = None,
    start_mode: StartMode = "continue",
) -> PeftModel:
    """Freezes `model`, read from `model_dir`, and adds trainable LoRA adapters to its linear layers.

    The adapter names `base_id` and `revision` as its base, not the folder that the model was read from. Only a
    quantised base is prepared for k-bit training, which would needlessly double the memory of any other.

    With `start_mode` "continue" the adapters start with the weights of the adapter `start_from`, whose shape `lora`
    must have. With "new" that adapter stays as it is, below the trained one, which needs the same layers.

    If the trained adapter is not all that changes the base model (PiSSA, OLoRA, "new"), what is saved is one adapter of
    a higher rank for the unchanged base, and the weights of the checkpoint `resume_from` are loaded here. For all
    others the caller loads them.
    """
    if quantised:
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    below = start_from if start_mode == "new" else None
    loaded = resume_from or (start_from if start_mode == "continue" else None)
    initial: str | bool = lora.init_lora_weights
    if initial in ("default", "loftq") or (lora.changes_base and resume_from):
        initial = True
    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.r,
            # peft also accepts a float, despite its type hint.
            lora_alpha=_whole(lora.lora_alpha),  # type: ignore[arg-type]
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
    joined: list[_Tensors] = []
    if lora.changes_base:
        joined.append(_taken_again(adapted, resume_from) if resume_from else _taken(adapted))
    elif lora.init_lora_weights == "loftq" and not loaded:
        _compensate_quantisation(adapted, model_dir)
    if below:
        if resume_from and not lora.changes_base:
            set_peft_model_state_dict(adapted, _part(load_file(resume_from / _WEIGHTS), 0, lora.r))
        joined.append(_lay_below(adapted, below))
    elif loaded and not resume_from:
        load_adapter_weights(adapted, loaded)
    save = adapted.save_pretrained

    def save_pretrained(folder: str | Path, **options: Any) -> None:
        # By default peft would ask the hub whether the vocabulary of the base was resized, which never happens here.
        save(str(folder), save_embedding_layers=False, selected_adapters=[_NAME], **options)
        if joined:
            _join(Path(folder), lora, joined)

    adapted.save_pretrained = save_pretrained  # type: ignore[method-assign, assignment]
    return adapted


def load_adapter_weights(adapted: PeftModel, saved: Path) -> None:
    """Loads the weights of a saved adapter of the same shape into the trained one. An uploaded adapter is one file,
    others are folders."""
    set_peft_model_state_dict(adapted, load_file(saved if saved.is_file() else saved / _WEIGHTS))


def load_adapter(model: PreTrainedModel | PeftModel, adapter_dir: Path, name: str = _NAME) -> PeftModel:
    """Adds a saved adapter to `model`, which may have others of other names, for inference.

    Raises FileNotFoundError without adapter_model.safetensors; peft would look for a pickle instead, then on the hub.
    """
    if not (adapter_dir / _WEIGHTS).is_file():
        raise FileNotFoundError(f"no {_WEIGHTS} in {adapter_dir.name}")
    if isinstance(model, PeftModel):
        adapted = model
        adapted.load_adapter(str(adapter_dir), adapter_name=name, is_trainable=False)
    else:
        adapted = PeftModel.from_pretrained(model, str(adapter_dir), adapter_name=name, is_trainable=False)
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


def _whole(alpha: float) -> float:
    """Returns a whole number as an integer, as which adapter_config.json has it."""
    return int(alpha) if alpha.is_integer() else alpha


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


def _taken(adapted: PeftModel) -> _Tensors:
    """Returns what PiSSA and OLoRA have added to the base weights: their initial adapters, whose product was
    subtracted. They must not be trained yet."""
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    initial = {name: value.detach().cpu().clone() for name, value in state.items() if "lora_" in name}
    return {name: -value if ".lora_B." in name else value for name, value in initial.items()}


def _taken_again(adapted: PeftModel, folder: Path) -> _Tensors:
    """Loads the trained part of a checkpoint into new adapters, and changes the base weights as at the start.

    The file contains the initial values, so a checkpoint needs nothing else.
    """
    stored = load_file(folder / _WEIGHTS)
    taken: _Tensors = {}
    for name, layer in _layers(adapted):
        first, second = f"base_model.model.{name}.lora_A.weight", f"base_model.model.{name}.lora_B.weight"
        rank = layer.r[_NAME]
        taken |= _part({key: stored[key] for key in (first, second)}, rank, 2 * rank)
        weight = layer.get_base_layer().weight
        a, b = taken[first].to(weight.device), taken[second].to(weight.device)
        # The operations and their order are peft's, so that the weights are the same bits.
        weight.data = (weight.data.to(torch.float32) - layer.scaling[_NAME] * -b @ a).to(weight.dtype)
        stored |= _part({key: stored[key] for key in (first, second)}, 0, rank)
    set_peft_model_state_dict(adapted, stored)
    return taken


def _lay_below(adapted: PeftModel, folder: Path) -> _Tensors:
    """Adds the adapter in `folder`, which is not trained, and returns its tensors, at the scale of the trained one.

    It is not added to the base weights: quantised ones cannot take it, and those of 16 bits would round most of it off.
    """
    config = LoraConfig.from_pretrained(str(folder))
    # It is part of the model that is trained, not of what is learned.
    config.lora_dropout = 0.0
    adapted.add_adapter(_START, config)
    tensors = load_file(folder / _WEIGHTS)
    for name, layer in _layers(adapted):
        tensors[f"base_model.model.{name}.lora_B.weight"] *= layer.scaling[_START] / layer.scaling[_NAME]
        layer.scaling[_START] = layer.scaling[_NAME]
    set_peft_model_state_dict(adapted, tensors, adapter_name=_START)
    cast(LoraModel, adapted.base_model).set_adapter([_NAME, _START])
    for _, layer in _layers(adapted):
        layer.lora_A[_START].requires_grad_(False)
        layer.lora_B[_START].requires_grad_(False)
    return tensors


def _part(tensors: _Tensors, first: int, end: int) -> _Tensors:
    """Returns the ranks from `first` to `end` of an adapter's matrices."""
    return {
        name: (value[first:end] if ".lora_A." in name else value[:, first:end]).clone(
            memory_format=torch.contiguous_format
        )
        for name, value in tensors.items()
    }


def _join(folder: Path, lora: Lora, others: Sequence[_Tensors]) -> None:
    """Rewrites the adapter that was just saved in `folder` as its sum with others of the same scale.

    W + sBA + sB'A' is W + s[B | B'][A ; A']: one adapter, whose rank is the sum of theirs.
    """
    tensors = load_file(folder / _WEIGHTS)
    for name, value in tensors.items():
        if ".lora_A." in name:
            tensors[name] = torch.cat([value, *(other[name] for other in others)], dim=0)
        elif ".lora_B." in name:
            tensors[name] = torch.cat([value, *(other[name] for other in others)], dim=1)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    rank = next(value.shape[0] for name, value in tensors.items() if ".lora_A." in name)
    config = json.loads((folder / _CONFIG).read_text("utf-8"))
    config |= {"r": rank, "lora_alpha": _whole(saved_alpha(lora, rank)), "init_lora_weights": True}
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
