"""Verifies that the merged form, loaded by transformers, is the model of the checkpoint."""

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from engine.config.job import Quantization
from engine.errors import JobError
from engine.inl.auto_classes import register_inl
from engine.model.adapter import load_adapter
from engine.model.heap import return_freed_memory
from engine.model.load import load_base
from engine.model.merge import differences, weight_files
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.comparison import (
    Bounds,
    Comparison,
    LogitsFile,
    Verified,
    compared_rows,
    comparison_message,
    logits,
)
from services.exporter.worker.forms import dtype_of
from services.exporter.worker.merged import MergeSettings, merge_settings, trained_quantisation
from services.hardware import available_memory

SAME_FORMAT: Final = Bounds(max_difference=1e-3)
"""For float32 on both sides: the sums of a merged layer round otherwise than those of layer and adapter."""
ROUNDED: Final = Bounds(mean_kl=0.02)
"""For 16 bits on one side or both. bfloat16 alone costs about 0.002 nats."""
UNBOUNDED: Final = Bounds()


@dataclass(frozen=True)
class _Checkpoint:
    """The form in which the checkpoint is run."""

    weights: Path
    adapter: Path | None
    dtype: torch.dtype
    quantization: Quantization | None

    @property
    def size_bytes(self) -> int:
        """Size of the weights in memory, at most."""
        return _num_parameters(self.weights) * self.dtype.itemsize

    def load(self) -> Any:
        """Loads the model, with its adapter."""
        model = load_base(self.weights, dtype=self.dtype, on="cpu", quantization=self.quantization)
        if self.quantization is not None and self.quantization.bits == 8:
            _dequantise(model, self.dtype)
        return load_adapter(model, self.adapter) if self.adapter else model


class CheckpointLogits:
    """Logits of the checkpoint on the rows that each form is compared on, computed once."""

    def __init__(
        self, child_input: ExportInput, tokenizer_dir: Path, scratch: Path, on_row: Callable[[], None] = lambda: None
    ) -> None:
        """`on_row` is called for each row."""
        self._checkpoint = _checkpoint(child_input, 0.8 * available_memory())
        # A file, so that the memory never holds two models.
        self._stored = LogitsFile(scratch / "checkpoint-logits")
        self._computed = False
        self._on_row = on_row
        self.rows = compared_rows(child_input, tokenizer_dir)
        self.dtype = self._checkpoint.dtype
        self.size_bytes = self._checkpoint.size_bytes

    def stored(self) -> LogitsFile:
        """Returns the logits. The first call loads the model and runs it."""
        if not self._computed:
            self._stored.write(logits(self._checkpoint.load(), self.rows.rows, self._on_row))
            self._computed = True
        return self._stored


def verify_merged(
    child_input: ExportInput, folder: Path, checkpoint: CheckpointLogits, on_row: Callable[[], None] = lambda: None
) -> Verified:
    """Compares the model in `folder` with the checkpoint, with one of them in memory at a time.

    One that does not fit into the free memory is not run: each tensor is compared with what merging gives.
    Raises JobError("EXPORT_DIFFERS"). `on_row` is called for each row.
    """
    settings = merge_settings(child_input)
    free = 0.8 * available_memory()
    if max(checkpoint.size_bytes, sum(file.stat().st_size for file in weight_files(folder))) > free:
        name, difference = _worst_tensor(folder, settings)
        if difference > 0:
            problem = f"{name} is not what merging gives; the models were not run, as they do not fit into memory"
            raise _differs(child_input, problem)
        return Verified(None, "the model does not fit into free memory")
    stored = checkpoint.stored()
    gc.collect()
    return_freed_memory()
    model = _load(folder)
    found = Comparison.of(stored.read(), logits(model, checkpoint.rows.rows, on_row))
    bounds = _bounds(child_input, checkpoint.dtype, model.dtype)
    if not bounds.hold(found):
        raise _differs(child_input, _exceeded(found, bounds, *_worst_tensor(folder, settings)))
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    return Verified(comparison_message(found, bounds, checkpoint.rows.source, dtype))


def _checkpoint(child_input: ExportInput, free: float) -> _Checkpoint:
    """Returns the checkpoint in the form that was trained: in float32, unless its base model was quantised from less,
    or only the format of its files fits into `free` bytes."""
    quantised = trained_quantisation(child_input.config)
    weights, adapter = child_input.model.path, child_input.adapter_dir
    if quantised is None:
        full = child_input.config.method == "full"
        wide = _Checkpoint(adapter if full else weights, None if full else adapter, torch.float32, None)
        if wide.size_bytes <= free:
            return wide
        return replace(wide, dtype=getattr(torch, dtype_of(weight_files(wide.weights))))
    # The weights are the trained ones; computing with them in fewer bits would only add noise to the comparison.
    quantization = quantised.quantization.model_copy(update={"bnb_4bit_compute_dtype": "auto"})
    return _Checkpoint(weights, adapter, quantised.dtype, quantization)


def _bounds(child_input: ExportInput, checkpoint: torch.dtype, merged: torch.dtype) -> Bounds:
    config = child_input.config
    if config.method == "qlora" and config.export.merge_base == "original":
        return UNBOUNDED
    return SAME_FORMAT if checkpoint == merged == torch.float32 else ROUNDED


def _dequantise(model: Any, dtype: torch.dtype) -> None:
    """Replaces layers of 8 bits by layers of the weights that these stand for.

    They also round what they multiply, which no weight can express and which costs more than a format of 16 bits.
    """
    from bitsandbytes.nn.modules import Linear8bitLt

    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear8bitLt):
            plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, dtype=dtype, device="meta")
            plain.weight = torch.nn.Parameter(dequantize_module_weight(layer).to(dtype), requires_grad=False)
            plain.bias = layer.bias
            model.set_submodule(name, plain)
    # peft chooses its layers by these.
    model.is_loaded_in_8bit = False


def _num_parameters(folder: Path) -> int:
    total = 0
    for file in weight_files(folder):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                total += math.prod(tensors.get_slice(name).get_shape())
    return total


def _load(folder: Path) -> Any:
    register_inl()
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", local_files_only=True, use_safetensors=True, trust_remote_code=False
    )


def _worst_tensor(folder: Path, settings: MergeSettings) -> tuple[str, float]:
    """Returns the tensor that differs most from what merging gives, and by which share of its largest value."""
    found = differences(folder, settings.base, settings.adapter, dtype=settings.dtype, quantised=settings.quantised)
    return max(found, key=lambda each: each[1])


def _exceeded(found: Comparison, bounds: Bounds, name: str, difference: float) -> str:
    bound = f"mean KL {bounds.mean_kl:g}" if bounds.mean_kl is not None else f"difference {bounds.max_difference:g}"
    figures = (
        f"mean KL {found.mean_kl:.3g} nats per position, 99th percentile {found.p99_kl:.3g}, "
        f"{found.same_next_token:.1%} equal next tokens, largest difference of logits {found.max_difference:.3g}, "
        f"at {found.num_positions:,} positions of {found.num_rows} rows (bound: {bound})"
    )
    if difference > 0:
        return f"{figures}. {name} differs most from what merging gives: by {difference:.1%} of its maximum"
    return f"{figures}. Each tensor is what merging gives, so the number format is too coarse for this model"


def _differs(child_input: ExportInput, problem: str) -> JobError:
    adapter = "" if child_input.of_base else ", or export the adapter"
    return JobError(
        "EXPORT_DIFFERS",
        f"The merged model differs from {child_input.original}: {problem}. Nothing of the package is published.",
        f"Set export.dtype to float32 or bfloat16{adapter}. If a tensor differs, please report it.",
    )
