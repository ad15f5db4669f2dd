"""Verifies that the package, loaded as a user loads it, gives the same logits as the checkpoint."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from engine.errors import SystemFailure
from engine.file_hash import sha256_of
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.package import MANIFEST

PROMPT = "The quick brown fox jumps over the lazy dog."
TOLERANCE = 1e-5
"""Largest difference of a logit. Equal weights on one machine give equal bits; this allows for threads."""


class PackageBroken(SystemFailure):
    """The package differs from the trained model. No file of it is published."""

    def __init__(self, message: str) -> None:
        super().__init__(reason="PACKAGE_BROKEN", message=message, advice="This is a bug; please report it.")


@dataclass(frozen=True)
class Verified:
    """Result of a verification."""

    max_difference: float | None
    """Largest difference of the logits; None if the base model does not fit into the free memory, so that only tensors
    were compared."""


def verify(child_input: ExportInput, package: Path, scratch: Path) -> Verified:
    """Unpacks the zip into `scratch` and compares it with the checkpoint, tensor by tensor and by logits.

    Loads the base model in the precision of its files: the comparison holds in any. It is loaded once, or twice for an
    adapter that needs a copy of its own. PackageBroken if it fails.
    """
    with zipfile.ZipFile(package) as archive:
        archive.extractall(scratch)
    for entry in json.loads((scratch / MANIFEST).read_text("utf-8"))["files"]:
        if sha256_of(scratch / entry["path"]) != entry["sha256"]:
            raise PackageBroken(f"The SHA-256 of {entry['path']} differs from the one in the package's manifest.")
    names = sorted(file.name for file in scratch.glob("*.safetensors"))
    shapes = {
        name: shape
        for file in names
        for name, shape in _compare(scratch / file, child_input.adapter_dir / file).items()
    }
    weights = child_input.model.path if child_input.config.method != "full" else scratch
    needed = sum(file.stat().st_size for file in weights.glob("*.safetensors"))
    if child_input.config.method == "full":
        needed *= 2
    if needed > 0.8 * psutil.virtual_memory().available:
        return Verified(None)
    inputs = _inputs(scratch)
    if child_input.config.method == "full":
        difference = _difference(_logits(_load(scratch), inputs), _logits(_load(child_input.adapter_dir), inputs))
    else:
        difference = _adapter_difference(child_input, scratch, inputs, shapes)
    if not difference <= TOLERANCE:
        raise PackageBroken(f"The logits of the package differ from those of the checkpoint by {difference:g}.")
    return Verified(difference)


def _compare(packed: Path, original: Path) -> dict[str, list[int]]:
    with safe_open(packed, "pt") as ours, safe_open(original, "pt") as theirs:
        if set(ours.keys()) != set(theirs.keys()):
            raise PackageBroken(f"{packed.name} has other tensors than the checkpoint.")
        shapes: dict[str, list[int]] = {}
        for name in ours.keys():  # noqa: SIM118 - safe_open is no mapping
            tensor = ours.get_tensor(name)
            if not torch.equal(tensor, theirs.get_tensor(name)):
                raise PackageBroken(f"{packed.name}: {name} differs from the checkpoint.")
            shapes[name] = list(tensor.shape)
    if not shapes:
        raise PackageBroken(f"{packed.name} contains no tensors.")
    return shapes


def _inputs(folder: Path) -> torch.Tensor:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = tokenizer(PROMPT)["input_ids"]
    if not ids:
        raise PackageBroken("The tokenizer of the package returns no tokens for a text.")
    return torch.tensor([ids])


def _adapter_difference(
    child_input: ExportInput, folder: Path, inputs: torch.Tensor, shapes: dict[str, list[int]]
) -> float:
    base = _load(child_input.model.path)
    model = PeftModel.from_pretrained(base, folder, adapter_name="package")
    # The default asks a model hub for the base under its public id, to see whether embeddings were resized: never here.
    loaded = get_peft_model_state_dict(model, adapter_name="package", save_embedding_layers=False)
    taken = {name: list(tensor.shape) for name, tensor in loaded.items()}
    if wrong := sorted(name for name in taken.keys() | shapes.keys() if taken.get(name) != shapes.get(name)):
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise PackageBroken(f"The adapter does not fit the base model: {', '.join(wrong[:3])}{more}.")
    ours = _logits(model, inputs)
    if child_input.config.lora.needs_own_base:
        del base, model
        model = PeftModel.from_pretrained(
            _load(child_input.model.path), child_input.adapter_dir, adapter_name="checkpoint"
        )
    else:
        model.load_adapter(child_input.adapter_dir, adapter_name="checkpoint")
        model.set_adapter("checkpoint")
    return _difference(ours, _logits(model, inputs))


def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", local_files_only=True, use_safetensors=True, trust_remote_code=False
    )


def _logits(model: Any, inputs: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=inputs, use_cache=False).logits
    return logits.float()


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max())
