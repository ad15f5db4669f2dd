"""Adapters that were made elsewhere: a folder of peft's, packed into the one file that is uploaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from finetuneflow.errors import InvalidArgument, Violation

_CONFIG, _WEIGHTS, _PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_KEY = "adapter_config"
_MAX_HEADER_BYTES = 16 << 20
_ALIGNMENT = 8


def pack(folder: Path, target: Path) -> None:
    """Writes the adapter in `folder` to one safetensors file, with its configuration in the metadata of the header.

    The same folder gives the same bytes. Raises InvalidArgument("INVALID_ADAPTER"), OSError.
    """
    for name in (_CONFIG, _WEIGHTS):
        if (folder / name).is_file():
            continue
        if name == _WEIGHTS and (folder / _PICKLE).is_file():
            raise _invalid(f"{folder} has its weights as {_PICKLE}, which can run code; save them as {_WEIGHTS}.")
        raise _invalid(f"{folder} has no {name}; name a folder that peft's save_pretrained has written.")
    try:
        config = (folder / _CONFIG).read_text("utf-8")
        json.loads(config)
    except ValueError:
        raise _invalid(f"{folder / _CONFIG} is not JSON.") from None
    with (folder / _WEIGHTS).open("rb") as source, target.open("wb") as packed:
        try:
            size = int.from_bytes(source.read(8), "little")
            header = json.loads(source.read(size)) if size <= _MAX_HEADER_BYTES else None
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            raise _invalid(f"{folder / _WEIGHTS} is not a safetensors file.")
        header["__metadata__"] = {"format": "pt", _KEY: config}
        written = json.dumps(header, separators=(",", ":")).encode()
        written += b" " * (-len(written) % _ALIGNMENT)
        packed.write(len(written).to_bytes(8, "little") + written)
        shutil.copyfileobj(source, packed, 1 << 20)


def _invalid(problem: str) -> InvalidArgument:
    return InvalidArgument(problem, reason="INVALID_ADAPTER", violations=[Violation("folder", problem)])
