"""Tests for the findings of `ftf doctor` on a machine that is to run the whole system."""

import json
import sys
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


def test_home_that_children_can_read_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database in it would be open to every child, although children are confined."""
    monkeypatch.setenv("FTF_HOME", str(Path(sys.prefix) / "home"))
    found = [detail for name, ok, detail in checks() if name == "children" and ok is False]
    assert len(found) == 1
    assert "set FTF_HOME to another folder" in found[0]


def test_missing_parts_of_the_confinement_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FTF_HOME", str(tmp_path))
    monkeypatch.setattr("chassis.security.landlock.abi", lambda: 0)
    found = [(ok, detail) for name, ok, detail in checks() if name == "children"]
    assert [ok for ok, _ in found] == [None]
    assert "no Landlock" in found[0][1]
