"""Loads the two models of an evaluation, one after the other, in one form of the weights."""

import gc
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from chassis.child.pipe import EventSink
from engine.config.job import JobConfig, Quantization
from engine.model import load
from engine.model.adapter import load_adapter
from finetuneflow.v1.event_pb2 import Warning
from services.evaluator.worker.child_input import Side

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Form:
    """Number format and quantization in which models are evaluated."""

    dtype: torch.dtype
    on: load.Device
    quantization: Quantization | None = None

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16."""
        return _NAMES[self.dtype]

    @property
    def weights(self) -> str:
        """`original` or `quantized`."""
        return "original" if self.quantization is None else "quantized"

    def parts(self) -> dict[str, Any]:
        """Returns what identifies the form."""
        quantized = None if self.quantization is None else self.quantization.model_dump()
        return {"precision": self.precision, "quantization": quantized, "device": self.on}


def form_of(config: JobConfig, base: Side | None, tuned: Side, sink: EventSink) -> Form:
    """Chooses the form: fp32 on the original weights where these fit, and warns of another one."""
    on: load.Device = "cpu" if config.resources.gpus == 0 else load.device()
    base = tuned if base is None else base
    if tuned.needs_quantized or base.needs_quantized:
        # On other weights the adapter would add a second time what the quantization has lost.
        message = "LoftQ's adapter belongs to the quantized weights; both models are evaluated with these."
        advice = "Serve it on weights quantized in the same way, as the package's README.md does."
        sink.emit(Warning(reason="NOT_EVALUATED_IN_FP32", message=message, advice=advice))
        return Form(torch.float32, on, tuned.trained_on or base.trained_on)
    if on == "cuda" and not _fits_in_float32(base.model.path):
        precision = config.hyperparameters.precision
        if precision == "auto":  # of no job
            precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        message = f"The model does not fit into the GPU in float32; both models are evaluated in {precision}."
        advice = "Evaluate on a GPU with more memory to have figures in fp32."
        sink.emit(Warning(reason="NOT_EVALUATED_IN_FP32", message=message, advice=advice))
        return Form(load.weights_dtype("lora", precision, on), on, tuned.trained_on)
    return Form(torch.float32, on)


class Models:
    """Holds one model at a time. A base model stays in memory when an adapter is laid on it."""

    def __init__(self, sink: EventSink) -> None:
        self._sink = sink
        self._model: Any = None
        self._loaded: tuple[Side, Form] | None = None

    def get(self, side: Side, form: Form) -> Any:
        """Returns the side's model, loaded if necessary."""
        if self._loaded == (side, form):
            return self._model
        with self._sink.ticking():
            if not self._holds_plain_base_of(side, form):
                self.release()
                options: dict[str, Any] = {"dtype": form.dtype, "on": form.on, "quantization": form.quantization}
                whole = side.checkpoint.path if side.checkpoint and side.is_full else side.model.path
                self._model = load.load_base(whole, **options)
            if side.checkpoint and not side.is_full:
                self._model = load_adapter(self._model, side.checkpoint.path)
        self._loaded = (side, form)
        return self._model

    def release(self) -> None:
        """Frees the memory of the model that is held."""
        self._model = self._loaded = None
        gc.collect()
        torch.cuda.empty_cache()

    def _holds_plain_base_of(self, side: Side, form: Form) -> bool:
        """An adapter cannot be taken off again: that would leave trained biases behind."""
        if self._loaded is None or side.is_full:
            return False
        held, held_form = self._loaded
        same_weights = held.model.weights_sha256 == side.model.weights_sha256
        return held.checkpoint is None and same_weights and held_form == form


def _fits_in_float32(folder: Path) -> bool:
    """Returns True if four-byte weights fit into the GPU's free memory and leave a third of it for the computation."""
    parameters = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            parameters += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    free: int = torch.cuda.mem_get_info()[0]
    return 4 * parameters * 1.5 < free
