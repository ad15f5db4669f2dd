"""The memory that a process may take, where something limits it to less than the machine's, and the GPUs it may use."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from engine.estimate.machine import deciding_gpu
from services import hardware
from services.attempt_inputs import child_devices

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


_FREE = [40, 80, 20]
"""Free memory of the GPUs, by index."""


_RUNNING = [SimpleNamespace(pid=1, usedGpuMemory=5)]
"""Processes on the GPU 1: one of another program."""


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three GPUs, of which no machine that runs the tests has one."""
    module = ModuleType("pynvml")
    given: dict[str, object] = {
        "NVMLError": RuntimeError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "580",
        "nvmlSystemGetCudaDriverVersion": lambda: 13000,
        "nvmlDeviceGetCount": lambda: len(_FREE),
        "nvmlDeviceGetHandleByIndex": int,
        "nvmlDeviceGetHandleByUUID": lambda uuid: int(uuid.removeprefix("GPU-")),
        "nvmlDeviceGetIndex": int,
        "nvmlDeviceGetMemoryInfo": lambda index: SimpleNamespace(total=80, free=_FREE[index]),
        "nvmlDeviceGetCudaComputeCapability": lambda _: (9, 0),
        "nvmlDeviceGetName": lambda _: "NVIDIA H100",
        "nvmlDeviceGetTemperature": lambda *_: 40,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=0),
        "nvmlDeviceGetComputeRunningProcesses": lambda index: _RUNNING if index == 1 else [],
    }
    for name, value in given.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(hardware, "_packages", lambda: {"torch": "2.13.0"})


@pytest.mark.parametrize(
    ("visible", "indices", "one", "two"),
    [(None, [0, 1, 2], 40, 40), ("1,2", [1, 2], 80, 20), ("GPU-2", [2], 20, 20), ("", [0, 1, 2], None, None)],
)
@pytest.mark.usefixtures("nvml")
def test_the_gpus_of_a_plan_are_those_of_the_training(
    visible: str | None, indices: list[int], one: int | None, two: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan for the memory of another GPU fails after hours of waiting: each of several trainers of a machine has its
    own GPUs, and one process of a training has the first one."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = hardware.read_hardware("node", Path("/"))
    assert [gpu.index for gpu in found.gpus] == indices
    for processes, free in ((1, one), (2, two)):
        gpu = deciding_gpu(found, processes)
        assert (gpu and gpu.memory_free_bytes) == free
    if visible:
        assert child_devices(1)["CUDA_VISIBLE_DEVICES"] == visible.split(",")[0]


@pytest.mark.usefixtures("nvml")
def test_memory_of_the_own_children_is_told_from_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that waits for the end of another has that one's memory, and not that of other programs."""
    with subprocess.Popen([sys.executable, "-c", "print(flush=True), input()"], stdin=-1, stdout=-1) as child:
        assert child.stdout and child.stdout.readline()
        own = SimpleNamespace(pid=child.pid, usedGpuMemory=30)
        monkeypatch.setattr(sys.modules[__name__], "_RUNNING", [*_RUNNING, own])
        found = hardware.read_hardware("node", Path("/"))
        assert child.stdin
        child.stdin.close()
    assert MIB < found.memory_own_bytes < found.memory_total_bytes / 2
    assert [gpu.memory_own_bytes for gpu in found.gpus] == [0, 30, 0]
