"""Merges an adapter into its base model block by block, so that a model of any size fits into memory."""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open

from engine.config.job import Quantization
from engine.errors import JobError
from engine.model_folder import StoredTensor, read_header, unmergeable_tensor

_ADAPTER, _ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_INDEX = "model.safetensors.index.json"
_HEAD: Final = "lm_head.weight"
_PREFIX: Final = "base_model.model."
_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_BLOCK_BYTES: Final = 1 << 20
"""Least size in float32 of the rows that are merged at once. So many stay in a core's cache until they are written."""
_BLOCK_ROWS: Final = 64
"""Least number of rows that are merged at once. Products of a few rows round otherwise than those of a whole matrix."""
_MAX_THREADS: Final = 4
"""With more of them, memory is no faster, and more tensors would be in it."""


@dataclass(frozen=True)
class Quantised:
    """Quantization of the base model during the training."""

    quantization: Quantization
    dtype: torch.dtype
    """Number format of the weights before they were quantised."""


def merge(
    base: Path,
    adapter: Path | None,
    target: Path,
    *,
    dtype: torch.dtype | None = None,
    quantised: Quantised | None = None,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes the base model with the adapter merged into its weights: weights, config.json, generation_config.json.

    `base` is the folder of a model in safetensors, `adapter` that of a LoRA adapter of peft (LoRA, rsLoRA, DoRA,
    trained biases, modules_to_save, trainable tokens) or None to change only the number format, `target` an existing
    folder. The weights have the files of the base model; `dtype` is the number format of all floating-point weights, by
    default the one that each has there. With `quantised` the adapter is merged into what quantisation made of the
    weights, as the adapter was trained on them. In memory are the adapter, what was read of one file,
    and at most a few copies of four tensors. `on_bytes` is called after each tensor with the bytes written so far and
    in all.

    Raises JobError: MERGE_UNSUPPORTED if the adapter changes anything else than tensors of the base.
    """
    merging = _merging(base, adapter, quantised)
    with _threads() as threads:
        files = list(merging.tensors)
        headers = {file: _headers(stored, merging.made[file], dtype) for file, stored in merging.tensors.items()}
        total = sum(_num_bytes(*header) for of_file in headers.values() for header in of_file.values())
        done = 0
        for file in files:
            # One at a time: an opened file counts as memory that the process may write to, and is limited.
            with safe_open(base / file, "pt") as tensors:
                blocks = partial(_blocks, merging.changes, tensors, merging.made[file], dtype)
                for num_bytes in _write(target / file, headers[file], blocks, threads):
                    done += num_bytes
                    on_bytes(done, total)
        if len(files) > 1:
            size = sum((target / file).stat().st_size for file in files)
            places = {name: file for file, made in merging.made.items() for name in made}
            _write_json(target / _INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))})
        _write_config(base, target, dtype, untied=merging.untied)


def differences(
    merged: Path,
    base: Path,
    adapter: Path | None,
    *,
    dtype: torch.dtype | None = None,
    quantised: Quantised | None = None,
) -> Iterator[tuple[str, float]]:
    """Yields for each tensor that `merge` makes its largest difference to that of the folder `merged`, relative to the
    largest value of the tensor; infinity for one that is missing, has another shape, or has values that are not finite.
    """
    merging = _merging(base, adapter, quantised)
    with _threads() as threads:
        for file, made in merging.made.items():
            found = _Stored.open(merged / file)
            with safe_open(base / file, "pt") as tensors:
                blocks = partial(_blocks, merging.changes, tensors, made, dtype)
                shapes = (merging.tensors[file][source].shape for source in made.values())
                differing = threads.map(partial(_difference, blocks, found), shapes, made)
                # As in `merge`: with another number of threads a product may round otherwise.
                yield from zip(made, differing, strict=True)


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files that transformers loads from a model's folder, in order."""
    single, index = folder / "model.safetensors", folder / _INDEX
    # A folder that was saved to twice may have both.
    if single.is_file() or not index.is_file():
        return [single]
    names = json.loads(index.read_text("utf-8"))["weight_map"].values()
    return [folder / name for name in sorted(set(names))]


@dataclass(frozen=True)
class _Merging:
    """The files of a base model, and what is made of them."""

    changes: "_Changes"
    tensors: Mapping[str, Mapping[str, StoredTensor]]
    """The tensors of each file, by their names."""
    made: Mapping[str, Mapping[str, str]]
    """For each file the tensors to write, and the ones of the base that they are made from."""
    untied: bool
    """True if the head becomes a tensor of its own."""


@dataclass(frozen=True)
class _Stored:
    """A safetensors file whose tensors are read one by one, without mapping the file into memory."""

    file: Path
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def open(cls, file: Path) -> "_Stored":
        """Reads the header; a file that is missing has no tensors."""
        return cls(file, read_header(file).tensors if file.is_file() else {})

    def beside(self, name: str, blocks: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields each block of rows of a tensor of that name and shape with the same rows in this file."""
        stored = self.tensors[name]
        dtype = _DTYPES[stored.dtype]
        with self.file.open("rb") as file:
            file.seek(stored.offset)
            for block in blocks:
                content = bytearray(block.numel() * dtype.itemsize)
                file.readinto(content)
                found = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
                yield block, found.view(block.shape)


def _merging(base: Path, adapter: Path | None, quantised: Quantised | None) -> _Merging:
    if found := unmergeable_tensor(base):
        raise _unsupported(f"the base model has {found[0]} in the number format {found[1]}")
    config = json.loads((base / "config.json").read_text("utf-8"))
    changes = _Changes(adapter)
    tensors = {file.name: read_header(file).tensors for file in weight_files(base)}
    places = {name: file for file, stored in tensors.items() for name in stored}
    changes.locate(places)
    if quantised:
        changes.quantise(quantised, _linear_weights(base, places))
    head = changes.separate_head(config, places)
    made = {
        file: {name: name for name in sorted(stored, key=lambda name: stored[name].offset)}
        for file, stored in tensors.items()
    }
    if head:
        made[places[head]][_HEAD] = head
    return _Merging(changes, tensors, made, untied=head is not None)


def _difference(
    blocks: Callable[[str], Iterator[torch.Tensor]], merged: _Stored, shape: tuple[int, ...], name: str
) -> float:
    """Returns the largest difference between the tensor of that name in `merged` and `blocks`, which make one of this
    shape. One block is in memory at a time."""
    if name not in merged.tensors or merged.tensors[name].shape != shape:
        return math.inf
    largest = 0.0
    for block, found in merged.beside(name, blocks(name)):
        if block.numel() and not torch.equal(block, found):
            largest = max(largest, float((block.double() - found.double()).abs().nan_to_num(math.inf).max()))
    if not largest:
        return 0.0
    maximum = max(float(block.double().abs().max()) for block in blocks(name) if block.numel())
    relative = largest / (maximum or 1.0)
    return relative if math.isfinite(relative) else math.inf


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Yields threads that each compute on one core."""
    count = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(min(count, _MAX_THREADS), initializer=torch.set_num_threads, initargs=(1,)) as threads:
            yield threads
    finally:
        # The number that one thread sets is that of all threads that start later.
        torch.set_num_threads(count)


def _blocks(
    changes: "_Changes", tensors: Any, made: Mapping[str, str], dtype: torch.dtype | None, name: str
) -> Iterator[torch.Tensor]:
    weight = tensors.get_tensor(made[name])
    return changes.applied(name, weight, dtype if dtype and weight.is_floating_point() else weight.dtype)


def _headers(
    tensors: Mapping[str, StoredTensor], made: Mapping[str, str], dtype: torch.dtype | None
) -> dict[str, tuple[str, list[int]]]:
    """Returns format and shape of each tensor to write."""
    headers = {}
    for name, source in made.items():
        own = tensors[source]
        changed = dtype is not None and _DTYPES[own.dtype].is_floating_point
        headers[name] = (_NAMES[dtype] if dtype and changed else own.dtype, list(own.shape))
    return headers


def _write(
    file: Path,
    headers: Mapping[str, tuple[str, list[int]]],
    blocks: Callable[[str], Iterator[torch.Tensor]],
    threads: ThreadPoolExecutor,
) -> Iterator[int]:
    """Writes a safetensors file while its tensors are made, each by one thread; the library's own functions need all of
    them at once. `blocks` makes a tensor's parts. Yields the size of each tensor once it is written.

    The format: 8 bytes with the length of the header, little-endian; a JSON object with format, shape and place of
    each tensor; their bytes. https://github.com/huggingface/safetensors#format
    """
    places: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (format_, shape) in headers.items():
        start, end = end, end + _num_bytes(format_, shape)
        places[name] = {"dtype": format_, "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(places, separators=(",", ":")).encode()
    # Readers map the file into memory and expect numbers at multiples of their size.
    header += b" " * (-len(header) % 8)
    header = len(header).to_bytes(8, "little") + header

    with file.open("wb", buffering=0) as sink:

        def write(name: str) -> int:
            position = len(header) + places[name]["data_offsets"][0]
            for block in blocks(name):
                content = block.contiguous().reshape(-1).view(torch.uint8).numpy().data
                position = _write_at(sink.fileno(), content, position)
            return _num_bytes(*headers[name])

        _write_at(sink.fileno(), memoryview(header), 0)
        yield from threads.map(write, headers)


def _write_at(file: int, content: memoryview, position: int) -> int:
    """Writes to a place of a file, and returns the place after it."""
    while content:
        # The system writes at most 2 GiB at once.
        written = os.pwrite(file, content, position)
        content, position = content[written:], position + written
    return position


def _num_bytes(format_: str, shape: list[int]) -> int:
    return torch.Size(shape).numel() * _DTYPES[format_].itemsize


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _write_config(base: Path, target: Path, dtype: torch.dtype | None, *, untied: bool) -> None:
    config = json.loads((base / "config.json").read_text("utf-8"))
    if untied:
        config["tie_word_embeddings"] = False
    if dtype:
        # transformers 4 reads torch_dtype, transformers 5 both.
        config.pop("dtype", None)
        config["torch_dtype"] = str(dtype).removeprefix("torch.")
    _write_json(target / "config.json", config)
    if (base / "generation_config.json").is_file():
        shutil.copyfile(base / "generation_config.json", target / "generation_config.json")


class _Changes:
    """Changes of an adapter to the tensors of its base model; none without an adapter."""

    def __init__(self, folder: Path | None) -> None:
        self._layers: dict[str, dict[str, torch.Tensor]] = {}
        """For each changed tensor of the base: `A` and `B` (with `magnitude` for DoRA), new `rows` of an embedding, or
        the `whole` new tensor."""
        self._quantised: Quantised | None = None
        self._quantised_names: set[str] = set()
        if folder is not None:
            self._read(folder)

    def _read(self, folder: Path) -> None:
        config = json.loads((folder / _ADAPTER_CONFIG).read_text("utf-8"))
        if config.get("peft_type") != "LORA":
            raise _unsupported(f"it is of type {config.get('peft_type')}, not LORA")
        for pattern in ("rank_pattern", "alpha_pattern"):
            if config.get(pattern):
                raise _unsupported(f"{pattern} gives its layers different scales")
        rank, alpha = config["r"], config["lora_alpha"]
        self._scale: float = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        self._transposed = bool(config.get("fan_in_fan_out"))
        self._dora = bool(config.get("use_dora"))
        self._tokens: list[int] = _token_ids(config.get("trainable_token_indices"))
        with safe_open(folder / _ADAPTER, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                name, part = _changed(key)
                self._layers.setdefault(name, {})[part] = tensors.get_tensor(key)

    def locate(self, names: Mapping[str, Any]) -> None:
        """Finds the changed tensors among those of the base, whose names may lack the name of the whole model."""
        self._layers = {located(name, names): parts for name, parts in self._layers.items()}
        if unknown := sorted(name for name in self._layers.keys() - names.keys() if name != _HEAD):
            raise _unsupported(f"it changes {unknown[0]}, which is no tensor of the base model's files")

    def quantise(self, quantised: Quantised, names: set[str]) -> None:
        """Makes the tensors of these names as they were after quantisation, before the adapter is merged."""
        self._quantised, self._quantised_names = quantised, names

    def separate_head(self, config: Mapping[str, Any], names: Mapping[str, Any]) -> str | None:
        """Returns the name of the embedding if the head is tied to it and the adapter makes the two different."""
        head = self._layers.get(_HEAD)
        if head is None or _HEAD in names:
            return None
        embedding = next((name for name in names if name.endswith(("embed_tokens.weight", "wte.weight"))), None)
        if embedding is None or not config.get("tie_word_embeddings"):
            raise _unsupported(f"it changes {_HEAD}, which is no tensor of the base model's files")
        own = self._layers.get(embedding, {})
        same = own.keys() == head.keys() and all(torch.equal(own[part], head[part]) for part in head)
        return None if same else embedding

    def applied(self, name: str, weight: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Yields the base's tensor `name` as the adapter changes it, in `dtype`, in blocks of rows. A block may be
        overwritten by the next one.

        The operations and their order are those of peft's merge_and_unload, so that the results are equal bit by bit.
        """
        if self._quantised and name in self._quantised_names:
            weight = _rounded(weight, self._quantised)
        parts = self._layers.get(name)
        if parts is None:
            yield weight.to(dtype)
        elif "whole" in parts:
            if parts["whole"].shape != weight.shape:
                raise _unsupported(f"it changes the shape of {name}")
            yield parts["whole"].to(dtype)
        elif "rows" in parts:
            yield weight.index_copy(0, torch.tensor(self._tokens), parts["rows"].to(weight.dtype)).to(dtype)
        elif self._dora or self._transposed:
            yield self._merged(weight, parts).to(dtype)
        else:
            yield from self._merged_blocks(weight, parts, dtype)

    def _merged(self, weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        weight = weight.T if self._transposed else weight
        merged = weight + (parts["B"].float() @ parts["A"].float()).mul_(self._scale)
        if self._dora:
            # The norm depends on the order in memory, which is that of the weight.
            merged = (parts["magnitude"] / torch.linalg.norm(merged, dim=1)).view(-1, 1) * merged
        return merged.T if self._transposed else merged

    def _merged_blocks(
        self, weight: torch.Tensor, parts: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> Iterator[torch.Tensor]:
        a, b = parts["A"].float(), parts["B"].float()
        height, width = weight.shape
        blocks = max(1, height // max(_BLOCK_ROWS, _BLOCK_BYTES // (4 * width)))
        # All blocks use the same memory: new memory costs more than the arithmetic.
        memory = torch.empty(-(-height // blocks), width)
        converted = torch.empty(memory.shape, dtype=dtype)
        for rows, own in zip(weight.tensor_split(blocks), b.tensor_split(blocks), strict=True):
            # The sum is the same in either order.
            merged = torch.mm(own, a, out=memory[: len(rows)]).mul_(self._scale).add_(rows)
            yield merged if dtype == torch.float32 else converted[: len(rows)].copy_(merged)


def _changed(key: str) -> tuple[str, str]:
    """Returns the tensor that an adapter's tensor changes, and what it is."""
    name = key.removeprefix(_PREFIX)
    for ending, part in (
        (".lora_A.weight", "A"),
        (".lora_B.weight", "B"),
        (".lora_magnitude_vector", "magnitude"),
        (".lora_magnitude_vector.weight", "magnitude"),
        (".token_adapter.trainable_tokens_delta", "rows"),
        (".trainable_tokens_delta", "rows"),
    ):
        if name.endswith(ending):
            return name.removesuffix(ending) + ".weight", part
    if "lora_" in name:
        raise _unsupported(f"it has the tensor {key}")
    return name.replace(".base_layer.", "."), "whole"


def _token_ids(indices: Any) -> list[int]:
    # A list is for the input embedding; a mapping names other modules.
    if isinstance(indices, dict):
        raise _unsupported("trainable_token_indices names modules")
    return list(indices or [])


def _rounded(weight: torch.Tensor, quantised: Quantised) -> torch.Tensor:
    """Returns what the 4- or 8-bit form of a weight stands for."""
    from bitsandbytes import functional

    quantization, weight = quantised.quantization, weight.to(quantised.dtype)
    if quantization.bits == 8:
        codes, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
        values: torch.Tensor = functional.int8_vectorwise_dequant(codes, scales)
        return values
    codes, state = functional.quantize_4bit(
        weight.contiguous(),
        compress_statistics=quantization.bnb_4bit_use_double_quant,
        quant_type=quantization.bnb_4bit_quant_type,
    )
    return functional.dequantize_4bit(codes, state)  # type: ignore[no-any-return, unused-ignore]


def _linear_weights(base: Path, names: Mapping[str, Any]) -> set[str]:
    """Returns the names of the base's tensors that are weights of linear layers, without the head."""
    # Seconds and 150 MiB, for quantised base models only.
    from transformers import AutoConfig, AutoModelForCausalLM

    from engine.inl.auto_classes import register_inl

    register_inl()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base, local_files_only=True))
    head = model.get_output_embeddings()
    linear = {f"{path}.weight" for path, module in model.named_modules() if _is_linear(module) and module is not head}
    return {located(name, names) for name in linear}


def _is_linear(module: torch.nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)


def located(name: str, names: Mapping[str, Any]) -> str:
    """Returns the name, among those of the base, of a tensor; there it may lack or have the name of the whole model."""
    short = re.sub(r"^[^.]*\.", "", name)
    return next((known for known in (name, short, f"model.{name}") if known in names), name)


def _unsupported(why: str) -> JobError:
    return JobError("MERGE_UNSUPPORTED", f"The adapter cannot be merged: {why}.", "Export it as an adapter.")
