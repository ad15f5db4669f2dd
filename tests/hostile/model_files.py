"""The files of an ordinary model of a few kilobytes, and ways to spoil them."""

import json
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import save

from tests.hostile.artifact import Write
from tests.tiny_models import make_tiny_tokenizer

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
_HIDDEN, _INNER, _VOCABULARY = 8, 16, 384
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": _HIDDEN,
    "intermediate_size": _INNER,
    "max_position_embeddings": 256,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "vocab_size": _VOCABULARY,
    "tie_word_embeddings": True,
}


@cache
def weights() -> bytes:
    """Returns an ordinary safetensors file."""
    block = "model.layers.0"
    shapes = {
        "model.embed_tokens.weight": (_VOCABULARY, _HIDDEN),
        "model.norm.weight": (_HIDDEN,),
        f"{block}.input_layernorm.weight": (_HIDDEN,),
        f"{block}.post_attention_layernorm.weight": (_HIDDEN,),
        **{f"{block}.self_attn.{name}_proj.weight": (_HIDDEN, _HIDDEN) for name in "qkvo"},
        f"{block}.mlp.gate_proj.weight": (_INNER, _HIDDEN),
        f"{block}.mlp.up_proj.weight": (_INNER, _HIDDEN),
        f"{block}.mlp.down_proj.weight": (_HIDDEN, _INNER),
    }
    return save({name: numpy.ones(shape, numpy.float32) for name, shape in shapes.items()}, {"format": "pt"})


@cache
def tokenizer_files() -> dict[str, bytes]:
    """Returns the files of an ordinary tokenizer, by name."""
    with tempfile.TemporaryDirectory() as folder:
        return {path.name: path.read_bytes() for path in make_tiny_tokenizer(Path(folder)).iterdir()}


def write_ordinary(folder: Path) -> None:
    """Writes an ordinary model."""
    for name, content in tokenizer_files().items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / WEIGHTS).write_bytes(weights())


def spoiled(*spoils: Write) -> Write:
    """Returns a function that writes an ordinary model and spoils it."""

    def write(folder: Path) -> None:
        write_ordinary(folder)
        for spoil in spoils:
            spoil(folder)

    return write


Content = bytes | str | Callable[[], bytes | str]
"""What a file contains; a function for contents that are too large to be made before they are needed."""


def put(name: str, content: Content) -> Write:
    """Returns a function that writes one file; `name` may have folders."""

    def write(folder: Path) -> None:
        path = folder / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        made = content() if callable(content) else content
        path.write_bytes(made.encode() if isinstance(made, str) else made)

    return write


def put_json(name: str, values: Any) -> Write:
    return put(name, json.dumps(values))


def change(name: str, **values: Any) -> Write:
    """Returns a function that sets values in a JSON file of the model."""

    def write(folder: Path) -> None:
        path = folder / name
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | values))

    return write


def config(**values: Any) -> Write:
    return spoiled(change("config.json", **values))


def remove(name: str) -> Write:
    return lambda folder: (folder / name).unlink()


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Returns a safetensors file with any header; `length` is the length that the file claims for it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data
