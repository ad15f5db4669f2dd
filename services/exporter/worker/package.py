"""The files of the package, and the zip that holds them."""

import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.data.tokenizer import Tokenizer
from engine.file_hash import sha256_of
from finetuneflow import package_check
from finetuneflow.package_signature import SIGNATURE
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.forms import Form, form_of
from services.exporter.worker.metrics import curve, metrics, training_config
from services.exporter.worker.model_card import base_model_card, model_card
from services.exporter.worker.plots import draw_changes, draw_losses
from services.exporter.worker.report import base_model_report, report
from services.exporter.worker.row_changes import CHANGES, loss_changes
from services.exporter.worker.row_forms import RowForms
from services.exporter.worker.serving import served_by
from services.exporter.worker.signature import write_signature
from services.exporter.worker.training_log import training_log, training_metadata

ZIP = package_check.ZIP
MANIFEST = package_check.MANIFEST
_ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
_LOADING_SETTINGS = {"is_local", "local_files_only", "name_or_path"}
# Stored uncompressed: PNG is already compressed, and compressing weights saves a tenth and takes minutes.
_STORED = {".safetensors", ".gguf", ".png"}
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_weights(child_input: ExportInput, folder: Path) -> Form:
    """Copies the trained weights and their configuration: the adapter, or for method full the model."""
    if child_input.config.method == "full":
        weights = sorted(child_input.adapter_dir.glob("model*.safetensors*"))
        if not weights:
            raise FileNotFoundError(f"no model.safetensors in {child_input.adapter_dir}")
        for file in [
            *weights,
            child_input.adapter_dir / "config.json",
            child_input.adapter_dir / "generation_config.json",
        ]:
            if file.exists() or file.name == "config.json":
                shutil.copyfile(file, folder / file.name)
        return form_of("adapter", folder, "", sorted(folder.glob("*.safetensors")))
    weights_name, config_name = _ADAPTER
    shutil.copyfile(child_input.adapter_dir / weights_name, folder / weights_name)
    _write_json(folder / config_name, adapter_config(child_input))
    return form_of("adapter", folder, "", [folder / weights_name])


def adapter_config(child_input: ExportInput) -> dict[str, Any] | None:
    """Returns the packed adapter_config; None for method full.

    The adapter names the base by its public id and revision: a path of this machine means nothing elsewhere.
    """
    if child_input.config.method == "full":
        return None
    _, config_name = _ADAPTER
    config: dict[str, Any] = json.loads((child_input.adapter_dir / config_name).read_text("utf-8"))
    config.update(
        base_model_name_or_path=child_input.model.id, revision=child_input.model.revision, inference_mode=True
    )
    # peft keeps a set, whose order differs between processes.
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()
    return config


def write_tokenizer(child_input: ExportInput, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json, chat_template.jinja and special_tokens_map.json.

    The chat template is the one that the rows were written with, also where the base model has none of its own. If no
    row was a conversation, the package has none: the model was not trained on that form.
    transformers no longer writes special_tokens_map.json; readers of its older format still look for it.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(child_input.model.path)
    is_chat = RowForms.of(child_input).chat
    tokenizer.chat_template = (
        Tokenizer(child_input.model.path, child_input.config.chat_template).template if is_chat else None
    )
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    # These say how the tokenizer was loaded here, and nothing about the tokenizer.
    settings = {name: value for name, value in settings.items() if name not in _LOADING_SETTINGS}
    # The name that every version of transformers reads; what version 5 writes is unknown to version 4.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if not is_chat:
        settings.pop("chat_template", None)
    # Without it the tokenizer adds token_type_ids, which decoder models refuse to generate from.
    settings.setdefault("model_input_names", ["input_ids", "attention_mask"])
    _write_json(folder / "tokenizer_config.json", settings)
    special: dict[str, Any] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    extra = [str(token) for token in tokenizer.extra_special_tokens]
    if extra:
        special["additional_special_tokens"] = extra
    _write_json(folder / "special_tokens_map.json", special)


def write_documents(child_input: ExportInput, folder: Path, forms: Sequence[Form]) -> None:
    """Settings, figures, report, plot and model card; of a base model, which was not trained, report and card only."""
    adapter = adapter_config(child_input)
    served = served_by(child_input, adapter, forms)
    if child_input.of_base:
        (folder / "report.md").write_text(base_model_report(child_input, forms, served), "utf-8")
        (folder / "README.md").write_text(base_model_card(child_input, forms, served), "utf-8")
        return
    _write_json(folder / "training_config.json", training_config(child_input, adapter))
    _write_json(folder / "metrics.json", metrics(child_input, forms))
    (folder / "training_log.json").write_text(training_log(child_input), "utf-8")
    _write_json(folder / "training_metadata.json", training_metadata(child_input))
    (folder / "report.md").write_text(report(child_input, adapter, forms, served), "utf-8")
    (folder / "README.md").write_text(model_card(child_input, forms, served), "utf-8")
    best = child_input.training.best_step
    curves = curve(child_input, "loss"), curve(child_input, "eval_loss")
    changes = loss_changes(child_input.evaluation_rows)
    if changes:
        draw_changes(folder / CHANGES, child_input.config.display_name, [change.gain for change in changes])
    draw_losses(folder / "train_loss.png", child_input.config.display_name, *curves, best)


def files_of(folder: Path) -> dict[str, Path]:
    """Returns the files of the package by their names in it, such as `merged/config.json`, in the order of these."""
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return dict(sorted(files.items()))


def write_manifest(child_input: ExportInput, folder: Path) -> None:
    """manifest.json: size and SHA-256 of every other file; and manifest.sig, if the exporter has a signing key."""
    files = [
        {"path": name, "sha256": sha256_of(file), "size_bytes": file.stat().st_size}
        for name, file in files_of(folder).items()
    ]
    step = child_input.packed_step
    _write_json(folder / MANIFEST, {"version": 1, "job_id": child_input.job.id, "step": step, "files": files})
    if child_input.signing:
        write_signature(child_input.signing, folder / MANIFEST, folder / SIGNATURE)


def write_zip(folder: Path, target: Path, on_bytes: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Zips all files of the folder by name, without times and owners: equal content gives an equal zip. `on_bytes` is
    called with the bytes packed so far and in all."""
    files, done = files_of(folder), 0
    total = sum(file.stat().st_size for file in files.values())
    with zipfile.ZipFile(target, "w") as archive:
        for name, file in files.items():
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_STORED if file.suffix in _STORED else zipfile.ZIP_DEFLATED
            with file.open("rb") as source, archive.open(entry, "w", force_zip64=True) as sink:
                while chunk := source.read(1 << 20):
                    sink.write(chunk)
                    done += len(chunk)
                    on_bytes(done, total)


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
