"""Safetensors files whose headers lie."""

import json
import os
from pathlib import Path
from typing import Any

from tests.hostile.artifact import ACCEPTED, Artifact, Family, Write
from tests.hostile.model_checks import check_model
from tests.hostile.model_files import WEIGHTS, Content, put, safetensors, spoiled, weights, write_ordinary

_MIB = 1 << 20


def _tensor(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def _sparse(folder: Path) -> None:
    """Gigabytes without a byte on disk, and a header that describes four of them."""
    path = folder / WEIGHTS
    path.write_bytes(safetensors({"a": _tensor((1,), (0, 4))}))
    os.truncate(path, 8 << 30)


def _many(number: int) -> bytes:
    tensors = ",".join(f'"t{index}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for index in range(number))
    return safetensors(f"{{{tensors}}}".encode())


def _file(content: Content) -> Write:
    return spoiled(put(WEIGHTS, content))


_ONE = {"a": _tensor()}
_DATA = bytes(8)
_BAD: dict[str, Content] = {
    "empty": b"",
    "seven-bytes": bytes(7),
    "length-only": safetensors(b"", length=0),
    "length-2^40": safetensors(b"{}", length=1 << 40),
    "length-2^63": safetensors(b"{}", length=1 << 63),
    "length-all-ones": b"\xff" * 8 + b"{}",
    "length-beyond-the-file": safetensors(b"{}", length=3),
    "length-100-mb": lambda: safetensors(b" " * (100 * _MIB)),
    "length-one-short": safetensors(_ONE, _DATA, length=len(json.dumps(_ONE)) - 1),
    "offsets-beyond-the-file": safetensors({"a": _tensor((1 << 20,), (0, 4 << 20))}, _DATA),
    "offsets-negative": safetensors({"a": _tensor(offsets=(-8, 0))}, _DATA),
    "offsets-reversed": safetensors({"a": _tensor(offsets=(8, 0))}, _DATA),
    "offsets-2^64": safetensors({"a": _tensor(offsets=(1 << 64, (1 << 64) + 8))}, _DATA),
    "offsets-near-2^64": safetensors({"a": _tensor(offsets=((1 << 64) - 8, 1 << 64))}, _DATA),
    "offsets-three": safetensors({"a": _tensor(offsets=(0, 4, 8))}, _DATA),
    "offsets-text": safetensors({"a": _tensor(offsets="08")}, _DATA),
    "offsets-fractions": safetensors({"a": _tensor(offsets=(0.0, 8.0))}, _DATA),
    "offsets-missing": safetensors({"a": {"dtype": "F32", "shape": [2]}}, _DATA),
    "overlap": safetensors({"a": _tensor(), "b": _tensor()}, _DATA),
    "overlap-in-part": safetensors({"a": _tensor(), "b": _tensor((2,), (4, 12))}, bytes(12)),
    "hole": safetensors({"a": _tensor(), "b": _tensor((2,), (16, 24))}, bytes(24)),
    "data-behind": safetensors(_ONE, bytes(100)),
    "data-before": safetensors({"a": _tensor(offsets=(8, 16))}, bytes(16)),
    "data-missing": safetensors(_ONE),
    "data-cut": weights()[:-1],
    "data-cut-in-half": weights()[: len(weights()) // 2],
    "dtype-unknown": safetensors({"a": _tensor(dtype="F33")}, _DATA),
    "dtype-number": safetensors({"a": _tensor(dtype=32)}, _DATA),
    "dtype-object": safetensors({"a": _tensor(dtype="O")}, _DATA),
    "dtype-of-another-size": safetensors({"a": _tensor(dtype="F64")}, _DATA),
    "shape-2^62": safetensors({"a": _tensor((1 << 62,), (0, 8))}, _DATA),
    "shape-overflows-to-2": safetensors({"a": _tensor((1 << 63, 2, 1), (0, 8))}, _DATA),
    "shape-2^32-squared": safetensors({"a": _tensor((1 << 32, 1 << 32), (0, 8))}, _DATA),
    "shape-10^100": safetensors({"a": _tensor((10**100,))}, _DATA),
    "shape-negative": safetensors({"a": _tensor((-1, -2))}, _DATA),
    "shape-text": safetensors({"a": _tensor("2")}, _DATA),
    "shape-fraction": safetensors({"a": _tensor((2.0,))}, _DATA),
    "shape-null": safetensors({"a": _tensor(None)}, _DATA),
    "shape-nested": safetensors({"a": _tensor([[2]])}, _DATA),
    "shape-empty-and-huge": safetensors({"a": _tensor((0, 1 << 62), (0, 0))}),
    "shape-empty-and-larger": safetensors({"a": _tensor((0, (1 << 32) + 1), (0, 0))}),
    "json-list": safetensors(b"[]"),
    "json-number": safetensors(b"1"),
    "json-cut": safetensors(b'{"a": {"dtype": "F32"'),
    "json-deep": safetensors(b"[" * 100_000),
    "json-deep-objects": safetensors(b'{"a":' * 100_000),
    "json-not-utf8": safetensors(b'{"\xff": 1}'),
    "json-nul": safetensors(bytes(100)),
    "json-behind": safetensors(b"{} {}"),
    "json-nan": safetensors(b'{"a": NaN}'),
    "json-number-of-a-million-digits": safetensors(b'{"a": ' + b"9" * _MIB + b"}"),
    "tensor-null": safetensors({"a": None}),
    "metadata-nested": safetensors({"__metadata__": {"a": {"b": "c"}}, **_ONE}, _DATA),
    "metadata-number": safetensors({"__metadata__": 1, **_ONE}, _DATA),
    "html": b"<html><body>404 Not Found</body></html>",
    "zip": b"PK\x03\x04" + bytes(1000),
    "git-lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}
_KEY_TWICE = json.dumps(_ONE)[:-1].encode() + b"," + json.dumps(_ONE)[1:].encode()

WEIGHT_HEADERS = Family(
    "weight headers",
    (
        Artifact("ordinary", write_ordinary, check_model, ACCEPTED),
        *(Artifact(name, _file(content), check_model, "BAD_WEIGHTS") for name, content in _BAD.items()),
        Artifact("second-file", spoiled(put("b.safetensors", b"\xff" * 100)), check_model, "BAD_WEIGHTS"),
        Artifact("sparse-gigabytes", spoiled(_sparse), check_model, "BAD_WEIGHTS"),
        Artifact("key-twice", _file(safetensors(_KEY_TWICE, _DATA)), check_model, "BAD_WEIGHTS"),
        Artifact("tensor-list", _file(safetensors({"a": ["F32", [2], [0, 8]]}, _DATA)), check_model, "BAD_WEIGHTS"),
        Artifact("no-tensors", _file(safetensors({})), check_model, ACCEPTED),
        Artifact("no-tensors-but-metadata", _file(safetensors({"__metadata__": {"a": "b"}})), check_model, ACCEPTED),
        Artifact("names-odd", _file(safetensors({"../../a\n\u202e\0": _tensor()}, _DATA)), check_model, ACCEPTED),
        Artifact("name-long", _file(safetensors({"a" * _MIB: _tensor()}, _DATA)), check_model, ACCEPTED),
        Artifact("names-like-blocks", _file(safetensors({"layers.0." * 10_000 + "a": _tensor()}, _DATA)), check_model, ACCEPTED),
        Artifact("shape-of-10,000-dimensions", _file(safetensors({"a": _tensor([1] * 10_000, (0, 4))}, bytes(4))), check_model, ACCEPTED),
        Artifact("unknown-keys", _file(safetensors({"a": _tensor(code="import os")}, _DATA)), check_model, ACCEPTED),
        Artifact("many-tensors", _file(lambda: _many(250_000)), check_model, ACCEPTED, seconds=8, mib=512),
        Artifact("more-tensors", _file(lambda: _many(500_000)), check_model, "BAD_WEIGHTS"),
    ),
)  # fmt: skip
