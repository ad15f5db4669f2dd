"""The built-in model's folder appears complete or not at all."""

from pathlib import Path

import pytest

from engine.model.materialise import materialise, packaged_gguf


def test_a_broken_file_leaves_nothing_behind(tmp_path: Path) -> None:
    """Half a model that looks like a whole one would fail every job from then on."""
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF is not in here")
    with pytest.raises(Exception):  # noqa: B017 - whatever the reader of the format raises
        materialise(gguf, tmp_path / "models" / "tiny")
    assert list((tmp_path / "models").iterdir()) == []


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    """A second process would otherwise replace weights that a training is reading."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    materialise(packaged_gguf(), tmp_path / "tiny")
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["config.json"]
