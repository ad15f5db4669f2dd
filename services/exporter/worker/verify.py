"""Verifies that each form in the package, loaded as a user loads it, gives the logits of the checkpoint."""

import gc
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from engine.errors import SystemFailure
from engine.file_hash import sha256_of
from engine.inl.auto_classes import register_inl
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.comparison import SENTENCE, Bounds, Comparison, Verified, comparison_message
from services.exporter.worker.forms import MERGED_FOLDER, Form
from services.exporter.worker.package import MANIFEST
from services.exporter.worker.verify_gguf import verify_gguf, verify_unrounded
from services.exporter.worker.verify_gguf_adapter import verify_gguf_adapter
from services.exporter.worker.verify_merged import CheckpointLogits, verify_merged
from services.hardware import available_memory

TOLERANCE = 1e-5
"""Largest difference of a logit. Equal weights on one machine give equal bits; this allows for threads."""


class PackageBroken(SystemFailure):
    """The package differs from the trained model. No file of it is published."""

    def __init__(self, message: str) -> None:
        super().__init__(reason="PACKAGE_BROKEN", message=message, advice="This is a bug; please report it.")


def verify(
    child_input: ExportInput,
    package: Path,
    scratch: Path,
    on_row: Callable[[], None] = lambda: None,
    forms: Sequence[Form] = (),
    sources: Path | None = None,
    on_file: Callable[[str], None] = lambda _: None,
) -> dict[str, Verified]:
    """Unpacks the zip into `scratch` and compares each form with the checkpoint, tensor by tensor and by logits.

    Returns the comparison of each form by its name. PackageBroken if an adapter or a file differs,
    JobError("EXPORT_DIFFERS") if a merged model or a GGUF file does. `on_row` is called for each row that these read.
    `on_file` is called with the name of each GGUF file before it is compared. `forms` are those of the package;
    `sources` has for each format of GGUF files a folder with what they were made of.
    """
    with zipfile.ZipFile(package) as archive:
        archive.extractall(scratch)
    for entry in json.loads((scratch / MANIFEST).read_text("utf-8"))["files"]:
        if sha256_of(scratch / entry["path"]) != entry["sha256"]:
            raise PackageBroken(f"The SHA-256 of {entry['path']} differs from the one in the package's manifest.")
    found: dict[str, Verified] = {}
    formats = child_input.config.export.formats
    if "adapter" in formats:
        found["adapter"] = _verify_adapter(child_input, scratch)
        gc.collect()
    if "merged" in formats or sources:
        checkpoint = CheckpointLogits(child_input, _tokenizer_dir(child_input, scratch, sources), scratch, on_row)
    if "merged" in formats:
        found["merged"] = verify_merged(child_input, scratch / MERGED_FOLDER, checkpoint, on_row)
        gc.collect()
    if sources and "gguf" in formats:
        source = sources / "gguf"
        unrounded = verify_unrounded(child_input, scratch, source, on_row)
        for form in (form for form in forms if form.format == "gguf"):
            on_file(Path(form.gguf.file).name if form.gguf else "")
            found[form.name] = verify_gguf(child_input, form, scratch, source, checkpoint, unrounded, on_row)
            gc.collect()
    if sources and "gguf_adapter" in formats:
        source = sources / "gguf_adapter"
        for form in (form for form in forms if form.format == "gguf_adapter"):
            on_file(Path(form.gguf.file).name if form.gguf else "")
            found[form.name] = verify_gguf_adapter(child_input, form, scratch, source, checkpoint, scratch, on_row)
            gc.collect()
    return found


def _tokenizer_dir(child_input: ExportInput, scratch: Path, sources: Path | None) -> Path:
    """Returns a folder with the tokenizer and chat template of the training; the base model's if no form has one."""
    folders = [scratch / MERGED_FOLDER, scratch, *([sources / "gguf"] if sources else [])]
    return next((folder for folder in folders if (folder / "tokenizer.json").is_file()), child_input.model.path)


def _verify_adapter(child_input: ExportInput, scratch: Path) -> Verified:
    """Compares the trained weights in the top folder.

    Loads the base model in the precision of its files: the comparison holds in any. It is loaded once, or twice for an
    adapter that needs a copy of its own.
    """
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
    if needed > 0.8 * available_memory():
        return Verified(None, "the model does not fit into free memory")
    inputs = _inputs(scratch)
    if child_input.config.method == "full":
        checkpoint = _load(child_input.adapter_dir)
        dtype, theirs, ours = checkpoint.dtype, _logits(checkpoint, inputs), _logits(_load(scratch), inputs)
    else:
        dtype, theirs, ours = _adapter_logits(child_input, scratch, inputs, shapes)
    found, bounds = Comparison.of([theirs], [ours]), Bounds(max_difference=TOLERANCE)
    if not bounds.hold(found):
        raise PackageBroken(
            f"The logits of the package differ from those of the checkpoint by {found.max_difference:g}."
        )
    return Verified(comparison_message(found, bounds, "sentence", str(dtype).removeprefix("torch.")))


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
    ids = tokenizer(SENTENCE)["input_ids"]
    if not ids:
        raise PackageBroken("The tokenizer of the package returns no tokens for a text.")
    return torch.tensor([ids])


def _adapter_logits(
    child_input: ExportInput, folder: Path, inputs: torch.Tensor, shapes: dict[str, list[int]]
) -> tuple[torch.dtype, torch.Tensor, torch.Tensor]:
    """Returns the number format of the base model, and the logits of the checkpoint and of the package."""
    base = _load(child_input.model.path)
    dtype = base.dtype
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
    return dtype, _logits(model, inputs), ours


def _load(folder: Path) -> Any:
    register_inl()
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", local_files_only=True, use_safetensors=True, trust_remote_code=False
    )


def _logits(model: Any, inputs: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=inputs, use_cache=False).logits
    return logits[0].float()
