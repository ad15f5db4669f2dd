"""Verifies that a GGUF file with an adapter alone gives the checkpoint's model beside a GGUF file of the base model."""

import gc
import json
import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from gguf import MODEL_ARCH_NAMES, GGUFReader, ReaderTensor, dequantize, get_tensor_name_map
from safetensors import safe_open
from transformers import AutoConfig

from engine.model.heap import return_freed_memory
from engine.model.merge import located, weight_files
from engine.model_folder import read_header
from engine.serving import BASE_GGUF
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.comparison import Comparison, Verified, comparison_message, logits
from services.exporter.worker.forms import Form
from services.exporter.worker.gguf_adapter import CONFIG, WEIGHTS, unsupported
from services.exporter.worker.verify_gguf import (
    ROUNDING,
    bounds_of_type,
    differs,
    load_file,
    relative_difference,
    text_of,
)
from services.exporter.worker.verify_merged import CheckpointLogits
from services.hardware import available_memory

_ALPHA: Final = "adapter.lora.alpha"
_EXPECTED: Final = {"general.type": "adapter", "adapter.type": "lora"}
_ADAPTED: Final = "adapted/model.gguf"
"""In a folder of its own: transformers would also load an adapter that lies beside it."""
_PREFIX: Final = "base_model.model."
_AS_GGUF: Final = "Export it as gguf, whose weights contain the adapter, or as adapter."


@dataclass(frozen=True)
class _Layer:
    """The two matrices of a layer in a file, and its weight in the base model's file, in llama.cpp's order of rows."""

    weight: str
    """Name of the weight in the file of the base model."""
    a: torch.Tensor
    """Float32, [rank, inputs]."""
    b: torch.Tensor
    """Float32, [outputs, rank]."""


def verify_gguf_adapter(
    child_input: ExportInput,
    form: Form,
    package: Path,
    source: Path,
    checkpoint: CheckpointLogits,
    scratch: Path,
    on_row: Callable[[], None] = lambda: None,
) -> Verified:
    """Compares a file of the unpacked package with the checkpoint: each tensor, and the probabilities of the base model
    in float32 to whose weights alpha / rank · B · A is added, as llama.cpp computes it.

    `source` is the folder of `write_adapter_source`. Raises JobError: EXPORT_DIFFERS; GGUF_UNSUPPORTED for an adapter
    of tensors that llama.cpp has in another form, so that they cannot be compared. `on_row` is called for each row and
    each layer.
    """
    assert form.gguf  # noqa: S101 - each file is a form
    file, type_ = form.gguf.file, form.gguf.type
    reader, base = GGUFReader(package / file), GGUFReader(source / BASE_GGUF)
    _check_header(child_input, file, reader, base)
    scale = _scale(child_input, file, reader)
    layers = list(_layers(child_input, file, type_, reader, base, on_row))
    needed = max(checkpoint.size_bytes, 2 * (source / BASE_GGUF).stat().st_size)
    if needed > 0.8 * available_memory():
        return Verified(None, "the model does not fit into free memory")
    stored = checkpoint.stored()
    gc.collect()
    return_freed_memory()
    adapted = scratch / _ADAPTED
    adapted.parent.mkdir(exist_ok=True)
    _write_adapted(source / BASE_GGUF, adapted, layers, scale)
    model = load_file(adapted, child_input.model.path, base)
    if isinstance(model, str):
        return Verified(None, model)
    found = Comparison.of(stored.read(), logits(model, checkpoint.rows.rows, on_row))
    bounds = bounds_of_type(type_, checkpoint.dtype, original=child_input.config.method == "qlora")
    if not bounds.hold(found):
        raise differs(
            child_input,
            file,
            f"mean KL {found.mean_kl:.3g} nats per position, 99th percentile {found.p99_kl:.3g}, "
            f"{found.same_next_token:.1%} equal next tokens, at {found.num_positions:,} positions of {found.num_rows} "
            f"rows (bound: mean KL {bounds.mean_kl:g}), although each of its tensors is the checkpoint's",
        )
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    return Verified(comparison_message(found, bounds, checkpoint.rows.source, dtype))


def _check_header(child_input: ExportInput, file: str, reader: GGUFReader, base: GGUFReader) -> None:
    expected = {**_EXPECTED, "general.architecture": text_of(base, "general.architecture")}
    for key, value in expected.items():
        if (found := text_of(reader, key)) != value:
            raise differs(child_input, file, f"its {key} is {found!r} instead of {value!r}")


def _scale(child_input: ExportInput, file: str, reader: GGUFReader) -> float:
    """Returns by what llama.cpp multiplies B · A. peft multiplies by the same."""
    config = json.loads((child_input.adapter_dir / CONFIG).read_text("utf-8"))
    rank: int = config["r"]
    field = reader.get_field(_ALPHA)
    alpha = float(field.contents()) if field else 0.0
    trained: float = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if not math.isclose(alpha / rank, trained, rel_tol=1e-6):
        raise differs(child_input, file, f"its alpha {alpha:g} scales it by {alpha / rank:g} instead of {trained:g}")
    return alpha / rank


def _layers(
    child_input: ExportInput,
    file: str,
    type_: str,
    reader: GGUFReader,
    base: GGUFReader,
    on_layer: Callable[[], None],
) -> Iterator[_Layer]:
    """Yields the layers of a file, each compared with that of the checkpoint."""
    model, bound = child_input.model.path, ROUNDING[type_]
    names = _names(model, base)
    own = {tensor.name: tensor for tensor in reader.tensors}
    of_base = {tensor.name: tensor for tensor in base.tensors}
    places = {name: path for path in weight_files(model) for name in read_header(path).tensors}
    with safe_open(child_input.adapter_dir / WEIGHTS, "pt") as adapter:
        for key in adapter.keys():  # noqa: SIM118 - safe_open is no mapping
            if not key.endswith(".lora_A.weight"):
                continue
            on_layer()
            path = key.removesuffix(".lora_A.weight")
            name = located(f"{path.removeprefix(_PREFIX)}.weight", places)
            mapped = names.get_name(name, try_suffixes=(".weight",)) or ""
            if name not in places or mapped not in of_base:
                raise unsupported(f"llama.cpp has no layer for its tensor {key}", _AS_GGUF)
            with safe_open(places[name], "pt") as tensors:
                order = _order(tensors.get_tensor(name).float(), _values(of_base[mapped]))
            if order is None:
                raise unsupported(f"llama.cpp has the weight {name} in another form", _AS_GGUF)
            parts = []
            for part, expected in (
                ("a", adapter.get_tensor(key)),
                ("b", adapter.get_tensor(f"{path}.lora_B.weight")[order]),
            ):
                tensor = own.pop(f"{mapped}.lora_{part}", None)
                if tensor is None:
                    raise differs(child_input, file, f"it lacks {mapped}.lora_{part}")
                values = _values(tensor)
                difference = relative_difference(expected.float(), values)
                if not difference <= bound:
                    raise differs(
                        child_input,
                        file,
                        f"{tensor.name} differs from the checkpoint's {path}.lora_{part.upper()}.weight by "
                        f"{100 * difference:.2g}% of its maximum (bound: {100 * bound:.2g}%)",
                    )
                parts.append(values)
            yield _Layer(mapped, *parts)
    if own:
        raise differs(child_input, file, f"it has the tensor {min(own)}, which the checkpoint lacks")


def _names(model: Path, base: GGUFReader) -> Any:
    architectures = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    architecture = architectures.get(text_of(base, "general.architecture"))
    if architecture is None:
        raise unsupported(f"the names of tensors in {text_of(base, 'general.architecture')} are not known", _AS_GGUF)
    layers = AutoConfig.from_pretrained(model, local_files_only=True).get_text_config().num_hidden_layers
    return get_tensor_name_map(architecture, layers)


def _values(tensor: ReaderTensor) -> torch.Tensor:
    return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())


def _order(weight: torch.Tensor, stored: torch.Tensor) -> torch.Tensor | None:
    """Returns for each row of the weight that llama.cpp stores the number of the row that it is, as the rows of B have
    the same order; None if it is no reordering of rows. Equal rows are taken in their order."""
    if weight.shape != stored.shape:
        return None
    if torch.equal(weight, stored):
        return torch.arange(len(weight))
    numbers: Mapping[bytes, list[int]] = defaultdict(list)
    for number, row in enumerate(weight.numpy()):
        numbers[row.tobytes()].insert(0, number)
    found = []
    for row in stored.numpy():
        candidates = numbers.get(row.tobytes())
        if not candidates:
            return None
        found.append(candidates.pop())
    return torch.tensor(found)


def _write_adapted(base: Path, target: Path, layers: list[_Layer], scale: float) -> None:
    """Writes the base model's file with the adapter added to its weights."""
    shutil.copyfile(base, target)
    reader = GGUFReader(target, "r+")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for layer in layers:
        data = tensors[layer.weight].data
        data += (layer.b @ layer.a * scale).numpy()
    reader.data.flush()
