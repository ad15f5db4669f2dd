"""The protos are the contract: linted, and the stubs are made from them. `make protos-check` brings the tools."""

import filecmp
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
STUBS = ROOT / "sdk" / "finetuneflow" / "v1"


def _tool(variable: str) -> str:
    found = shutil.which(os.environ.get(variable, ""))
    if found is None:
        pytest.skip(f"{variable} names no tool here; run `make protos-check`, with npm installed for buf")
    return found


def test_committed_stubs_are_those_of_the_protos(tmp_path: Path) -> None:
    """Otherwise a client generated from protos/ and ours speak different languages."""
    protoc = _tool("PROTOC_PYTHON")
    sources = sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto"))
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([protoc, "-m", "grpc_tools.protoc", "-I.", *outputs, *sources], cwd=PROTOS, check=True, timeout=120)

    fresh = tmp_path / "finetuneflow" / "v1"
    names = sorted(path.name for path in fresh.iterdir())
    committed = sorted(path.name for path in STUBS.iterdir() if "_pb2" in path.name)
    _, different, missing = filecmp.cmpfiles(fresh, STUBS, names, shallow=False)
    assert not different + missing, "run `make protos` and commit what it changes"
    assert committed == names, "a stub without a proto"


def test_protos_pass_buf_lint() -> None:
    """STANDARD and COMMENTS: every message, field and method says what it is."""
    done = subprocess.run([_tool("BUF"), "lint"], cwd=PROTOS, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
