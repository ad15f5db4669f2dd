"""Processes run no module of the working folder, and their memory is closed to other processes of their user."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from standalone.guard import guarded
from tests.services.conftest import Process

_NAMES = ("psutil", "grpc", "google", "pydantic", "nats", "torch", "sqlalchemy", "typer", "pynvml", "chassis", "engine")
# What the system lets any process of this user do, without root's capabilities.
_READ_ENVIRONMENT = """
import ctypes, os, sys
for capability in range(64):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execvp("cat", ["cat", f"/proc/{sys.argv[1]}/environ"])
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["gateway"],
        ["services.probe"],
        ["services.trainer"],
        ["services.evaluator"],
        ["services.exporter"],
        ["services.probe.queries", "missing.json"],
        ["services.probe.worker", "missing.json"],
        ["services.trainer.worker", "missing.json"],
        ["services.evaluator.worker", "missing.json"],
        ["services.evaluator.resident", "missing.json"],
        ["services.evaluator.harness", "missing.json"],
        ["services.exporter.worker", "missing.json"],
        ["finetuneflow.cli", "--help"],
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_modules_of_the_working_folder_are_not_run(arguments: list[str], tmp_path: Path) -> None:
    """Whoever may write to the folder that a process is started in would otherwise act with its passwords."""
    for name in _NAMES:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    environment |= {"FTF_HOME": str(tmp_path / "home"), "FTF_LISTEN": "127.0.0.1:0"}
    process = subprocess.Popen(
        guarded([sys.executable, "-m", *arguments]),
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    # A service has completed its imports then, and any other process has ended.
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "listens on" in line:
            break
    process.kill()
    process.communicate()
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()
    assert "ModuleNotFoundError" not in "".join(lines), "".join(lines)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux")
def test_passwords_of_a_service_are_not_read_by_another_process_of_its_user(processes: dict[str, Process]) -> None:
    """A child on a kernel without Landlock would otherwise read the broker's password in /proc."""
    for process in processes.values():
        argv = [sys.executable, "-c", _READ_ENVIRONMENT, str(process.popen.pid)]
        read = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert "Permission denied" in read.stderr
        assert not read.stdout
