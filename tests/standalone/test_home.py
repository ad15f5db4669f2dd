"""Only one system can run in a home folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from standalone.home import HomeTaken, default_home, held, holder, make_private

_HOLD = """
import sys
from pathlib import Path
from standalone.home import held
with held(Path(sys.argv[1]), "127.0.0.1:7460"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_lock_error_names_the_current_holder(tmp_path: Path) -> None:
    """Two systems in one home would corrupt its database; the user needs to find the other one."""
    with held(tmp_path, "127.0.0.1:7460"):
        with pytest.raises(HomeTaken) as taken, held(tmp_path, "127.0.0.1:7461"):
            pass
        assert taken.value.holder is not None
        assert (taken.value.holder.pid, taken.value.holder.address) == (os.getpid(), "127.0.0.1:7460")
        assert f"process {os.getpid()}, on 127.0.0.1:7460 since 20" in str(taken.value)
    assert holder(tmp_path) is None


def test_lock_is_released_when_its_process_dies(tmp_path: Path) -> None:
    """After a power loss or SIGKILL, no lock file must be deleted by hand."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        found = holder(tmp_path)
        assert found is not None
        assert found.pid == other.pid
        other.kill()
    assert holder(tmp_path) is None
    with held(tmp_path, "127.0.0.1:7460"):
        pass


def test_home_is_read_from_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A disk with space for models is seldom the one of the user's home."""
    monkeypatch.setenv("FTF_HOME", str(tmp_path))
    assert default_home() == tmp_path
    monkeypatch.setenv("FTF_HOME", "")
    assert default_home() == Path.home() / ".finetuneflow"


def test_home_is_private_and_an_open_one_is_closed(tmp_path: Path) -> None:
    """Other users of the machine would read the rows of every dataset."""
    home = tmp_path / "a" / "home"
    assert not make_private(home)
    assert home.stat().st_mode & 0o777 == 0o700
    home.chmod(0o755)
    assert make_private(home)
    assert not make_private(home)
    assert home.stat().st_mode & 0o777 == 0o700
