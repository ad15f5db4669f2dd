"""The merged form: the whole model, with the adapter merged into the base weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.config.job import JobConfig
from engine.model.load import Device, weights_dtype
from engine.model.merge import Quantised, merge, weight_files
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.forms import MERGED_FOLDER, Form, dtype_of, form_of


@dataclass(frozen=True)
class MergeSettings:
    """Files and number formats that the merged form is made from."""

    base: Path
    """Folder of the base model; for method full, of the checkpoint."""
    adapter: Path | None
    """None for method full."""
    dtype: torch.dtype | None
    """Number format of the weights; None: the one that each has in the base model."""
    quantised: Quantised | None
    """Quantization of the base weights that the adapter is merged into; None if they were not."""


def merge_settings(child_input: ExportInput) -> MergeSettings:
    """Returns the settings of the merged form."""
    export = child_input.config.export
    dtype: torch.dtype | None = getattr(torch, export.dtype) if export.dtype else None
    if child_input.of_base:
        return MergeSettings(child_input.model.path, None, dtype, None)
    if child_input.config.method == "full":
        # Trained weights have float32, whatever the base model has.
        dtype = dtype or getattr(torch, dtype_of(weight_files(child_input.model.path)))
        return MergeSettings(child_input.adapter_dir, None, dtype, None)
    quantised = None if export.merge_base == "original" else trained_quantisation(child_input.config)
    return MergeSettings(child_input.model.path, child_input.adapter_dir, dtype, quantised)


def trained_quantisation(config: JobConfig) -> Quantised | None:
    """Returns how the base model was quantised in the training; None if it was not."""
    if config.method != "qlora":
        return None
    on: Device = "cuda" if config.resources.gpus else "cpu"
    return Quantised(config.quantization, weights_dtype(config.method, config.hyperparameters.precision, on))


def write_merged(child_input: ExportInput, package: Path, on_bytes: Callable[[int, int], None]) -> Form:
    """Writes weights, their index, config.json and generation_config.json to the folder `merged` of the package."""
    folder = package / MERGED_FOLDER
    folder.mkdir()
    settings = merge_settings(child_input)
    merge(
        settings.base,
        settings.adapter,
        folder,
        dtype=settings.dtype,
        quantised=settings.quantised,
        on_bytes=on_bytes,
    )
    merge_base = child_input.config.export.merge_base if child_input.config.method == "qlora" else ""
    return form_of("merged", package, MERGED_FOLDER, weight_files(folder), merge_base)
