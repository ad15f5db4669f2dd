"""Tests for the probe that `ftf` starts itself on a machine without a server."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest


@pytest.mark.long
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_local_query_ends_with_the_command_that_started_it(end: signal.Signals, tmp_path: Path) -> None:
    """`timeout 120 ftf validate` left a process behind that continued to use processor and memory."""
    prices = tmp_path / "prices.toml"
    os.mkfifo(prices)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Why?", "answer": "So."}\n')
    argv = [sys.executable, "-m", "finetuneflow.cli", "validate", str(rows), "--model", "smollm2-135m"]
    environment = os.environ | {"FTF_PROBE_PRICES": str(prices), "FTF_HOME": str(tmp_path / "home")}
    environment.pop("FTF_ADDRESS", None)
    environment["PYTHONPATH"] = ":".join(sys.path)
    # The file is open as soon as it is read at the other end, which then waits for what never comes.
    with subprocess.Popen(argv, env=environment) as running, prices.open("w"):
        children = psutil.Process(running.pid).children(recursive=True)
        running.send_signal(end)
        running.wait(30)
        gone, alive = psutil.wait_procs(children, timeout=10)
        for process in alive:
            process.kill()
    assert gone
    assert not alive
