"""`ftf demo`, interrupted. tests/e2e runs it to its end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

# A test runner in the background of a shell ignores SIGINT, and so would what it starts. Not between fork and exec: a
# process that has used gRPC crashes there now and then.
HEED_SIGINT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 130, marks=pytest.mark.long),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.long),
    ],
)
def test_interrupted_demo_leaves_no_process(tmp_path: Path, number: signal.Signals, exit_code: int) -> None:
    """Otherwise a server and a training would keep running after a user ended the demo."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    env = os.environ | {
        "TMPDIR": str(folder),
        "FTF_HOME": str(tmp_path / "home"),
        # What the user has set for another server.
        "FTF_TOKEN": "another-key",
        "FTF_CA": "system",
        "FTF_CREDENTIALS": str(tmp_path / "credentials.json"),
    }
    with subprocess.Popen(
        [sys.executable, "-c", HEED_SIGINT, "-m", "finetuneflow.cli", "demo", "--output", str(tmp_path / "output")],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        assert any("validating" in line for line in demo.stdout)
        family = psutil.Process(demo.pid).children(recursive=True)
        assert len(family) >= 7
        demo.send_signal(number)
        demo.communicate(timeout=100)
    assert demo.returncode == exit_code
    assert not psutil.wait_procs(family, timeout=30)[1]
    if number is not signal.SIGKILL:
        assert not [*folder.glob("finetuneflow-demo-*")]
    assert not (tmp_path / "credentials.json").exists(), "the key of a server that is gone was stored"
