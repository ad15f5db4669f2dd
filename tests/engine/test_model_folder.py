"""Folders of models made to be loaded."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.catalogue import Catalogue
from engine.errors import JobError

Folder = Callable[..., Path]
Spoil = Callable[[Path], Any]


def write(name: str, values: object) -> Spoil:
    return lambda folder: (folder / name).write_text(json.dumps(values))


def change_config(**values: object) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def index(weight_map: object) -> Spoil:
    return write("model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def link_neighbour(folder: Path) -> None:
    neighbour = folder.parent / "other"
    neighbour.mkdir()
    (neighbour / "model.safetensors").write_bytes((folder / "model-1.safetensors").read_bytes())
    index({"lm_head.weight": "../other/model.safetensors"})(folder)


def header(data: bytes) -> Spoil:
    return lambda folder: (folder / "model-1.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (change_config(_attn_implementation="org/kernel"), "REMOTE_CODE_REFUSED"),
        (change_config(attn_implementation={"text": "org/kernel@main"}), "REMOTE_CODE_REFUSED"),
        (change_config(text_config={"_attn_implementation_internal": "org/kernel"}), "REMOTE_CODE_REFUSED"),
        (write("generation_config.json", {"attn_implementation": "org/kernel"}), "REMOTE_CODE_REFUSED"),
        (write("generation_config.json", {"auto_map": {"x": "y"}}), "REMOTE_CODE_REFUSED"),
        (write("adapter_config.json", {"peft_type": "LORA"}), "ADAPTER_IN_MODEL"),
        (link_neighbour, "BAD_WEIGHTS"),
        (index({"a": "/etc/passwd"}), "BAD_WEIGHTS"),
        (index({"a": "missing.safetensors"}), "BAD_WEIGHTS"),
        (index({"a": "config.json"}), "BAD_WEIGHTS"),
        (index({"a": 1}), "BAD_WEIGHTS"),
        (index([]), "BAD_WEIGHTS"),
        (header(struct.pack("<Q", 1 << 40) + b"{}"), "BAD_WEIGHTS"),
        (header(struct.pack("<Q", 2) + b"[]"), "BAD_WEIGHTS"),
        (header(struct.pack("<Q", 9) + b'{"a": {}}'), "BAD_WEIGHTS"),
        (header(struct.pack("<Q", 100_000) + b"[" * 100_000), "BAD_WEIGHTS"),
        (header(b""), "BAD_WEIGHTS"),
        (lambda folder: (folder / "config.json").write_text("[" * 200_000), "NOT_A_MODEL"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "NOT_A_MODEL"),
        (lambda folder: (folder / "config.json").write_text("[]"), "NOT_A_MODEL"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{"), "NOT_A_MODEL"),
    ],
)
def test_hostile_folders_are_refused(tmp_path: Path, model_folder: Folder, spoil: Spoil, reason: str) -> None:
    """They would run code of another repository, train a neighbour's weights, or end the process with its memory."""
    folder = model_folder()
    spoil(folder)
    catalogue = Catalogue(tmp_path / "home", {"tiny": folder})
    for call in (catalogue.fetch, catalogue.describe):
        with pytest.raises(JobError) as caught:
            call("tiny")
        assert caught.value.reason == reason
        assert caught.value.violations[0].field == "spec.base_model"


def test_ordinary_folders_are_accepted(tmp_path: Path, model_folder: Folder) -> None:
    """The refusals must not hit models that everybody uses."""
    folder = model_folder()
    change_config(_attn_implementation="sdpa", attn_implementation=None)(folder)
    index({"lm_head.weight": "model-1.safetensors"})(folder)
    assert Catalogue(tmp_path / "home", {"tiny": folder}).fetch("tiny").num_parameters > 0
