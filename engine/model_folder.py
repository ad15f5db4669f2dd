"""Reads and checks the folder of a model, whose files may be hostile: anybody can publish a model."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from engine.errors import JobError, Violation

_INDEX = "model.safetensors.index.json"
_MAX_JSON_BYTES = 64 << 20
"""Largest JSON file that is read; the largest tokenizer configurations have a few megabytes."""
_MAX_HEADER_BYTES = 100_000_000
"""Largest header of a safetensors file; the format's own reader has the same limit."""
_ANOTHER = "Use another base model or revision."


def refuse_unsafe(id_: str, folder: Path) -> None:
    """Refuses a model whose files would run code, read files outside its folder, or change what is trained.

    Raises JobError: REMOTE_CODE_REFUSED, ADAPTER_IN_MODEL, BAD_WEIGHTS, NOT_A_MODEL.
    """
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
        for key, value in _attention(values):
            raise model_error(
                "REMOTE_CODE_REFUSED",
                f"{id_} requires the attention kernel {str(value)[:100]!r} ({key} in {name}), which is code.",
                f"Remove {key} from {name}, or use another base model.",
            )
    if (folder / "adapter_config.json").exists():
        raise model_error(
            "ADAPTER_IN_MODEL",
            f"{id_} has an adapter beside its weights (adapter_config.json), which would be applied.",
            "Use a base model without an adapter, or one into whose weights the adapter is merged.",
        )
    _check_index(folder)


def _attention(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the settings of attention kernels, at any depth, that name a repository."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _attention(item, key if "attn_implementation" not in name else name)
    elif isinstance(value, list):
        for item in value:
            yield from _attention(item, name)
    elif "attn_implementation" in name and isinstance(value, str) and "/" in value:
        yield name, value


def _check_index(folder: Path) -> None:
    if not (folder / _INDEX).is_file():
        return
    files = read_json(folder / _INDEX).get("weight_map")
    for name in set(files.values()) if isinstance(files, Mapping) and _texts(files) else {""}:
        # The loader would read a path that leads out of the folder, and the weights' hash would not cover it.
        if PurePosixPath(name).name != name or not name.endswith(".safetensors") or not (folder / name).is_file():
            raise _bad_weights(f"{_INDEX} names {name[:100]!r}, which is no safetensors file of its folder")


def _texts(values: Mapping[Any, Any]) -> bool:
    return all(isinstance(value, str) for value in values.values())


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file of a model. Raises JobError NOT_A_MODEL if it is not one."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"it is larger than {_MAX_JSON_BYTES >> 20} MiB")
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
    except (ValueError, RecursionError) as error:
        said = str(error).splitlines()[0][:200]
        raise model_error("NOT_A_MODEL", f"{path.name} of the base model cannot be read: {said}.", _ANOTHER) from error
    return values


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a model's tensors by name, from the headers of its safetensors files.

    Raises JobError BAD_WEIGHTS if a header is damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            shapes |= _shapes(path)
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise _bad_weights(f"the header of {path.name} cannot be read") from error
    return shapes


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > min(_MAX_HEADER_BYTES, path.stat().st_size):
            raise ValueError(f"a header of {size} bytes")
        header = json.loads(file.read(size))
    return {name: tuple(map(int, tensor["shape"])) for name, tensor in header.items() if name != "__metadata__"}


def _bad_weights(what: str) -> JobError:
    message = f"The base model's weights are damaged: {what}."
    return model_error("BAD_WEIGHTS", message, f"Fetch the model again. {_ANOTHER}")


def model_error(reason: str, message: str, advice: str) -> JobError:
    """Returns the error for a base model that can't be used."""
    return JobError(reason, message, advice, [Violation("spec.base_model", message)])
