"""The memory that a process may take, where something limits it to less than the machine's."""

import subprocess
import sys
from pathlib import Path

import pytest

from services import hardware

MIB = 2**20
_LIMITED = """
import resource
from pathlib import Path
from services.hardware import available_memory
words = Path("/proc/self/status").read_text().split()
taken = 1024 * int(words[words.index("VmData:") + 1])
resource.setrlimit(resource.RLIMIT_DATA, (taken + 100 * 2**20,) * 2)
print(available_memory())
"""


def test_the_own_limit_counts() -> None:
    """A model that is loaded beyond it would end the process."""
    done = subprocess.run([sys.executable, "-c", _LIMITED], capture_output=True, text=True, check=True)
    assert 50 * MIB < int(done.stdout) <= 100 * MIB


@pytest.mark.parametrize("group", ["", "pods/exporter"])
def test_a_limit_of_the_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str) -> None:
    """In a container the group is the root of what it sees; of a service of the system it is below."""
    folder = tmp_path / "memory" / group
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{100 * MIB}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{90 * MIB}\n")
    (folder / "memory.stat").write_text(f"cache 1\ninactive_file {20 * MIB}\n")
    read = hardware._read_words
    own = {Path("/proc/self/cgroup"): [f"4:cpu,memory:/{group}", "0::/"]}
    monkeypatch.setattr(hardware, "_CGROUP", tmp_path)
    monkeypatch.setattr(hardware, "_read_words", lambda path: own.get(path) or read(path))
    assert hardware.available_memory() == 30 * MIB
