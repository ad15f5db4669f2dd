"""Tests for the findings of `ftf doctor` on a machine that is to run the whole system."""

import json
from pathlib import Path

import pytest

from standalone.checks import checks
from tests.tiny_models import make_tiny_model


def test_configured_models_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped folder would otherwise be noticed when the first job on that model fails."""
    whole = make_tiny_model(tmp_path / "whole")
    half = make_tiny_model(tmp_path / "half")
    (half / "tokenizer.json").unlink()
    models = {"whole": str(whole), "half": str(half), "gone": str(tmp_path / "gone")}
    monkeypatch.setenv("FTF_MODELS", json.dumps(models))
    monkeypatch.setenv("FTF_HOME", str(tmp_path / "home"))
    found = {detail.partition(":")[0]: (ok, detail) for name, ok, detail in checks() if name == "own models"}
    assert {alias: ok for alias, (ok, _) in found.items()} == {"whole": True, "half": False, "gone": False}
    assert "no tokenizer.json" in found["half"][1]
    assert "no such folder" in found["gone"][1]
    monkeypatch.setenv("FTF_MODELS", "{")
    assert [ok for name, ok, _ in checks() if name == "own models"] == [False]
