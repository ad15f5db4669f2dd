"""The trainer's child without broker, gateway and database."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[3]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_example_trains_an_adapter(tiny_model: Path, tmp_path: Path) -> None:
    """Whoever debugs the trainer, or runs it under another scheduler, starts from this file."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"question": f"What is {n}?", "answer": f"It is {n}."}) + "\n" for n in range(40))
    )
    ended = run("examples/train_without_broker.py", tiny_model, rows, tmp_path / "run", 4)
    assert ended.returncode == 0, ended.stderr
    assert "step=4" in ended.stdout and "stage_completed" in ended.stdout
    assert load_file(tmp_path / "run/out/checkpoints/step-4/adapter_model.safetensors")


def test_wrong_call_says_what_is_missing(tmp_path: Path) -> None:
    ended = run("-m", "services.trainer.worker")
    assert (ended.returncode, ended.stderr.strip()) == (1, "usage: python -m services.trainer.worker input.json")
    ended = run("-m", "services.trainer.worker", tmp_path / "none.json")
    assert (ended.returncode, ended.stderr.strip()) == (1, f"no such file: {tmp_path / 'none.json'}")
