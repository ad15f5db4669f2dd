"""Reads and checks the folder of a model, whose files may be hostile: anybody can publish a model."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config.advice import setting
from engine.data.rows import MAX_DEPTH, is_too_deep
from engine.errors import JobError, Violation

_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
SHAPES = "shapes.json"
"""File with the shapes of the tensors, by name, in a folder whose weights are not made yet."""
_TEMPLATES = "additional_chat_templates"
"""The only subfolder whose files are read."""
_MAX_JSON_BYTES = 32 << 20
"""Largest JSON file that is read; a tokenizer_config.json with 100,000 added tokens has 20 MB."""
_MAX_CONTAINERS = 1_000_000
"""Maximum number of objects and arrays in a JSON file. An empty one takes 3 bytes in the file and 70 in memory."""
_MAX_HEADER_BYTES = 16 << 20
"""Largest header of a safetensors file that is read; it describes 150,000 tensors."""
_DTYPE_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
_MAX_DIMENSION = 1 << 32
"""Maximum size of one dimension of a tensor. A tensor without elements may have any other size."""
_SIZES: dict[str, range] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), range(1, 10_000)),
    **dict.fromkeys(("num_attention_heads", "n_head"), range(1, 1 << 16)),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), range(1, 1 << 24)),
    **dict.fromkeys(("num_key_value_heads", "num_experts", "num_local_experts", "num_experts_per_tok"), range(1 << 16)),
    **dict.fromkeys(("head_dim", "intermediate_size", "moe_intermediate_size", "n_inner", "ff_size"), range(1 << 24)),
    **dict.fromkeys(("num_iterations", "num_iterations_per_layer"), range(1 << 16)),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), range(1 << 31)),
    "vocab_size": range(1, 1 << 26),
}
"""Settings of config.json that decide how much memory and time the model or its estimate take, with their values."""
_ANOTHER = "Use another base model or revision."


@dataclass(frozen=True)
class Described:
    """The configuration and tensor shapes of a base model, without its weights."""

    config: Mapping[str, Any]
    """Content of its config.json."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of its tensors, by name."""
    missing_bytes: int = 0
    """Bytes of weights that still have to be downloaded or unpacked."""


def refuse_unsafe(id_: str, folder: Path) -> None:
    """Refuses a model whose files would run code, read files outside its folder, exhaust the machine, or change what is
    trained.

    Raises JobError: UNSAFE_MODEL_FILE, REMOTE_CODE_REFUSED, ADAPTER_IN_MODEL, BAD_WEIGHTS, NOT_A_MODEL.
    """
    _check_files(id_, folder)
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        if not (folder / name).is_file():
            continue
        values = read_json(folder / name)
        if values.get("auto_map"):
            raise model_error(
                "REMOTE_CODE_REFUSED",
                f"{id_} requires its own code ({name} has auto_map); code of a model is never run.",
                "Use a base model whose architecture transformers supports.",
            )
        # transformers downloads and runs an attention kernel that is named like a repository.
        for key, value in _kernels(values):
            raise model_error(
                "REMOTE_CODE_REFUSED",
                f"{id_} requires the attention kernel {value[:100]!r} ({key[:100]} in {name}), which is code.",
                f"Remove {key[:100]} from {name}, or use another base model.",
            )
        _check_file_names(values, name)
    _check_config(read_json(folder / "config.json") if (folder / "config.json").is_file() else {})
    if (folder / "adapter_config.json").exists():
        raise model_error(
            "ADAPTER_IN_MODEL",
            f"{id_} has an adapter beside its weights (adapter_config.json), which would be applied.",
            "Use a base model without an adapter, or one into whose weights the adapter is merged.",
        )
    _check_index(folder)


def _check_files(id_: str, folder: Path) -> None:
    """Refuses pipes and devices, whose reading may never end, and links to files outside the folder."""
    root = Path(os.path.realpath(folder))
    # In the hub's cache the files of a revision are links to the files of all revisions.
    places = (root, root.parent.parent / "blobs") if root.parent.name == "snapshots" else (root,)

    def check(path: Path, *, may_be_folder: bool) -> None:
        place = Path(os.path.realpath(path))
        plain = place.is_file() or (may_be_folder and place.is_dir())
        if not plain or not any(place.is_relative_to(inside) for inside in places):
            raise model_error(
                "UNSAFE_MODEL_FILE",
                f"{path.name[:100]!r} of {id_} is not a file: it is a folder, a pipe, a device, or a link that leads "
                "out of the model's folder.",
                "Ask the operator to put a copy of the file into the folder.",
            )

    for path in folder.iterdir():
        if path.name == _TEMPLATES or path.name.endswith(".safetensors") or not path.is_dir():
            check(path, may_be_folder=path.name == _TEMPLATES)
    for path in (folder / _TEMPLATES).iterdir() if (folder / _TEMPLATES).is_dir() else ():
        check(path, may_be_folder=True)


def _check_file_names(values: Mapping[str, Any], name: str) -> None:
    """Refuses settings that make transformers read other files than those that are checked and hashed."""
    weights = values.get("transformers_weights")
    if weights is not None and weights not in (_WEIGHTS, _INDEX):
        raise _bad_weights(f"transformers_weights in {name} names {str(weights)[:100]!r} instead of {_WEIGHTS}")
    versions = values.get("fast_tokenizer_files") or []
    if not isinstance(versions, list) or any(file != "tokenizer.json" for file in versions):
        message = f"{name} of the base model names other tokenizers than tokenizer.json (fast_tokenizer_files)."
        raise model_error("NOT_A_MODEL", message, f"Remove them from {name}, or use another base model.")


def _check_config(config: dict[str, Any]) -> None:
    """Refuses sizes that no model has: the memory and time of an estimate depend on them."""
    architectures = config.get("architectures")
    if architectures is not None and not (isinstance(architectures, list) and _are_texts(architectures)):
        raise _bad_setting("architectures", "a list of names")
    for key, value in _settings(config):
        allowed = _SIZES.get(key)
        if allowed and isinstance(value, int) and value not in allowed:
            raise _bad_setting(key, f"between {allowed[0]} and {allowed[-1]:,}")


def _bad_setting(key: str, allowed: str) -> JobError:
    return model_error("NOT_A_MODEL", f"{key} in config.json of the base model is not {allowed}.", _ANOTHER)


def _settings(value: dict[str, Any] | list[Any]) -> Iterator[tuple[str, Any]]:
    """Yields the keys and values of all objects, at any depth."""
    if isinstance(value, dict):
        yield from value.items()
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict) or isinstance(item, list):  # noqa: SIM101 - four times as fast for many numbers
            yield from _settings(item)


def _kernels(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the settings of attention kernels, at any depth, that name a repository."""
    for key, value in _settings(values):
        if "attn_implementation" in key:
            parts = [value]
            while parts:
                part = parts.pop()
                parts += part.values() if isinstance(part, Mapping) else part if isinstance(part, list) else ()
                if isinstance(part, str) and "/" in part:
                    yield key, part


def has_weights(folder: Path) -> bool:
    """Returns True if the folder has the safetensors that are loaded: one file, or an index and its files."""
    names = {path.name for path in folder.iterdir()}
    return _WEIGHTS in names or (_INDEX in names and any(name.endswith(".safetensors") for name in names))


def _check_index(folder: Path) -> None:
    if not (folder / _INDEX).is_file():
        return
    named = read_json(folder / _INDEX).get("weight_map")
    files = {path.name for path in folder.glob("*.safetensors")}
    for name in set(named.values()) if isinstance(named, Mapping) and _are_texts(named.values()) else {""}:
        # The loader would read a path that leads out of the folder, and the weights' hash would not cover it.
        if name not in files:
            raise _bad_weights(f"{_INDEX} names {name[:100]!r}, which is no safetensors file of its folder")


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file of a model. Raises JobError NOT_A_MODEL if it is not one."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"it is larger than {_MAX_JSON_BYTES >> 20} MiB")
        text = path.read_text(encoding="utf-8")
        if (containers := text.count("{") + text.count("[")) > _MAX_CONTAINERS:
            raise ValueError(f"it has more than {_MAX_CONTAINERS:,} objects and arrays")
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
        if containers > MAX_DEPTH and is_too_deep(values):
            raise ValueError(f"its values are nested more than {MAX_DEPTH} deep")
    except (ValueError, RecursionError) as error:
        said = str(error).splitlines()[0][:200]
        raise model_error("NOT_A_MODEL", f"{path.name} of the base model cannot be read: {said}.", _ANOTHER) from error
    return values


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a model's tensors by name, from the headers of its safetensors files.

    Raises JobError BAD_WEIGHTS if a header is damaged, or does not describe exactly the bytes of its file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            shapes |= _shapes(path)
        except (AttributeError, ValueError, TypeError, LookupError, RecursionError) as error:
            raise _bad_weights(f"the header of {path.name} cannot be read") from error
    check_shapes(shapes, folder.name)
    return shapes


def known_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a model's tensors by name, also if its weights are not made yet; empty if only its
    configuration tells them. Raises what `tensor_shapes` raises."""
    if has_weights(folder) or not (folder / SHAPES).is_file():
        return tensor_shapes(folder)
    return {name: tuple(shape) for name, shape in read_json(folder / SHAPES).items()}


MERGEABLE = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"})
"""Number formats of tensors that can be computed with, or are kept as they are, when an adapter is merged."""


def unmergeable_tensor(folder: Path) -> tuple[str, str] | None:
    """Returns the name and the number format of a tensor that is not in one of MERGEABLE; None if there is none.

    Raises what `tensor_shapes` raises.
    """
    for path in sorted(folder.glob("*.safetensors")):
        try:
            tensors = read_header(path).tensors
        except (AttributeError, ValueError, TypeError, LookupError, RecursionError) as error:
            raise _bad_weights(f"the header of {path.name} cannot be read") from error
        for name, tensor in tensors.items():
            if tensor.dtype not in MERGEABLE:
                return name, tensor.dtype
    return None


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in read_header(path).tensors.items()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Position of its first byte in the file."""


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, StoredTensor]


def read_header(path: Path) -> Header:
    """Reads a header as the safetensors library does, which a gateway does not have.

    Raises AttributeError, ValueError, TypeError, LookupError or RecursionError for a damaged one.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        left = path.stat().st_size - 8 - size
        if size > _MAX_HEADER_BYTES or left < 0:
            raise ValueError(f"a header of {size} bytes")
        header = json.loads(file.read(size).decode("utf-8"), object_pairs_hook=_without_duplicates)
    metadata = header.pop("__metadata__", {})
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata that is not text")
    spans = []
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        shape = tensor["shape"]
        if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
            raise ValueError("a number that is no size")
        if _num_elements(shape) * _DTYPE_BITS[tensor["dtype"]] != (end - begin) * 8:
            raise ValueError("a tensor of another size than its bytes")
        spans.append((begin, end))
        tensors[name] = StoredTensor(tensor["dtype"], tuple(shape), 8 + size + begin)
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise ValueError("tensors that overlap or leave bytes out")
        position = end
    if position != left:
        raise ValueError("bytes that belong to no tensor")
    return Header(metadata, tensors)


def _num_elements(shape: list[int]) -> int:
    product = 0 if 0 in shape else 1
    for size in shape:
        product *= size
        # Ten thousand dimensions of a thousand digits each would take minutes to multiply.
        if product > 1 << 62:
            raise ValueError("more elements than a file can hold")
    return product


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name that occurs twice")
    return values


def check_shapes(shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuses tensors of a size that no file can hold. Raises JobError BAD_WEIGHTS."""
    for name, shape in shapes.items():
        if not all(isinstance(size, int) and 0 <= size <= _MAX_DIMENSION for size in shape):
            raise _bad_weights(f"the tensor {name[:100]!r} of {where} has an impossible shape")


def _bad_weights(what: str) -> JobError:
    message = f"The base model's weights are damaged: {what}."
    return model_error("BAD_WEIGHTS", message, f"Fetch the model again. {_ANOTHER}")


def model_error(reason: str, message: str, advice: str) -> JobError:
    """Returns the error for a base model that can't be used."""
    return JobError(reason, message, advice, [Violation("spec.base_model", message)])


def refuse_unfit(id_: str, folder: Path, tokenizer_only: bool) -> None:
    """Refuses a folder that is no model, that has no weights unless `tokenizer_only`, or that cannot be trained.

    Raises JobError: NOT_A_MODEL, NO_SAFETENSORS, NOT_CAUSAL_LM, QUANTISED_WEIGHTS, and those of `refuse_unsafe`.
    """
    if not (folder / "config.json").is_file():
        raise no_model(id_)
    if not tokenizer_only and not has_weights(folder):
        raise no_safetensors(id_)
    refuse_unsafe(id_, folder)
    _refuse_untrainable(id_, read_json(folder / "config.json"))


_GENERATING = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""Endings of the names of architectures that generate text."""


def _refuse_untrainable(id_: str, config: Mapping[str, Any]) -> None:
    named: list[str] = config.get("architectures") or []
    if config.get("is_encoder_decoder") or (named and not any(name.endswith(_GENERATING) for name in named)):
        # An embedding model would be trained with a randomly initialised head.
        what = ", ".join(named) or "is_encoder_decoder"
        raise model_error(
            "NOT_CAUSAL_LM",
            f"{id_} is not a causal language model: its config.json has {what[:200]}.",
            "Use a model whose architecture ends in ForCausalLM.",
        )
    quantised = config.get("quantization_config")
    if quantised:
        kind = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
        raise model_error(
            "QUANTISED_WEIGHTS",
            f"The weights of {id_} are already quantized ({str(kind or 'quantization_config')[:100]}).",
            f"Use the unquantized model; it is quantized when it is loaded if you set {setting('method', 'qlora')}.",
        )


def no_model(id_: str) -> JobError:
    """Returns the error of a folder without config.json."""
    return model_error(
        "NOT_A_MODEL", f"{id_} has no config.json, so it is not a transformers model.", "Use another model."
    )


def no_safetensors(id_: str) -> JobError:
    """Returns the error of a folder without weights that are accepted."""
    return model_error(
        "NO_SAFETENSORS",
        f"{id_} has no model.safetensors and no index of such files; other formats can run code when loaded, and are "
        "not accepted.",
        "Use a base model or revision with safetensors files.",
    )


def context_length(config: Mapping[str, Any]) -> int:
    """Returns the maximum sequence length in tokens from a config.json; 0 if it has none."""
    text = config.get("text_config")
    sections = [config, text] if isinstance(text, dict) else [config]
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    lengths = (section.get(name) for section in sections for name in names)
    return next((length for length in lengths if isinstance(length, int) and length > 0), 0)
