"""Hardware of this machine, from the operating system and NVIDIA's management library, never from torch.

Serving processes read it too, so it must cost milliseconds and a few megabytes only.
"""

import contextlib
import importlib.metadata
import os
import platform
import resource
import shutil
from collections.abc import Collection
from pathlib import Path

import psutil

from finetuneflow.v1.hardware_pb2 import Gpu, Hardware

PACKAGES = (
    "torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate", "flash_attn", "deepspeed",
)  # fmt: skip
_FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "amx_tile", "asimd", "sve", "bf16",
)  # fmt: skip
_CGROUP = Path("/sys/fs/cgroup")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_NONE_VISIBLE = ("", "-1")


def read_hardware(node_id: str, disk: Path) -> Hardware:
    """Measures this machine; `disk` is the folder for checkpoints. Values that cannot be read stay unset."""
    cpu = _cpu_info()
    own = _children()
    total, available = _memory()
    hardware = Hardware(
        node_id=node_id,
        cpu_model=cpu.get("model name", platform.processor()),
        cpu_cores=_cores(),
        cpu_features=[name for name in _FEATURES if name in cpu.get("flags", cpu.get("Features", "")).split()],
        memory_total_bytes=total,
        memory_available_bytes=available,
        memory_own_bytes=sum(own.values()),
        disk_free_bytes=shutil.disk_usage(_existing_parent(disk)).free,
        has_nvidia_smi=shutil.which("nvidia-smi") is not None,
        packages=_packages(),
        platform=platform.platform(),
        python_version=platform.python_version(),
    )
    _read_gpus(hardware, own)
    # The version of a CPU build of torch contains "+cpu".
    torch = hardware.packages.get("torch", "")
    hidden = os.environ.get(_VISIBLE) in _NONE_VISIBLE
    hardware.cuda_available = bool(hardware.gpus) and bool(torch) and "+cpu" not in torch and not hidden
    return hardware


def _children() -> dict[int, int]:
    """Returns the resident bytes of the processes that this one and its children have started, by process id."""
    try:
        children = psutil.Process().children(recursive=True)
    except (PermissionError, psutil.AccessDenied):
        # A confined child sees no other processes.
        return {}
    found = {}
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            found[child.pid] = int(child.memory_info().rss)
    return found


def _existing_parent(folder: Path) -> Path:
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())


def _cpu_info() -> dict[str, str]:
    """Returns the first processor of /proc/cpuinfo; empty if there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read_words(_own_cgroup() / "cpu.max")
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def _memory() -> tuple[int, int]:
    """Returns total and available bytes, within the container's limit if that is lower than the machine's."""
    machine = psutil.virtual_memory()
    total, available = int(machine.total), int(machine.available)
    group, v1 = _own_cgroup(), _own_memory_cgroup_v1()
    limits = (
        (group / "memory.max", group / "memory.current"),
        (v1 / "memory.limit_in_bytes", v1 / "memory.usage_in_bytes"),
    )
    for limit, used in limits:
        allowed, taken = _read_words(limit), _read_words(used)
        if allowed and allowed[0].isdigit() and int(allowed[0]) < total:
            total = int(allowed[0])
            # File pages count as used, although the kernel frees them when memory is needed.
            reclaimable = _statistic(limit.with_name("memory.stat"), "inactive_file")
            free = total - (int(taken[0]) if taken else 0) + reclaimable
            available = max(0, min(available, free))
    return total, available


def available_memory() -> int:
    """Returns the bytes that this process may still take: of the machine, of its container, and within its own limit of
    memory that it may write to."""
    _, available = _memory()
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit != resource.RLIM_INFINITY:
        available = min(available, max(0, limit - 1024 * _statistic(Path("/proc/self/status"), "VmData:")))
    return available


def _own_memory_cgroup_v1() -> Path:
    root = _CGROUP / "memory"
    for line in _read_words(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(",") and (group := root / path.lstrip("/")).is_dir():
            return group
    return root


def _own_cgroup() -> Path:
    for line in _read_words(Path("/proc/self/cgroup")):
        if line.startswith("0::"):
            group = _CGROUP / line.removeprefix("0::").lstrip("/")
            return group if (group / "memory.max").exists() else _CGROUP
    return _CGROUP


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return []


def _statistic(path: Path, name: str) -> int:
    words = _read_words(path)
    return int(words[words.index(name) + 1]) if name in words else 0


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _read_gpus(hardware: Hardware, own: Collection[int]) -> None:
    try:
        import pynvml
    except ImportError:
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return
    try:
        hardware.driver_version = pynvml.nvmlSystemGetDriverVersion()
        version = pynvml.nvmlSystemGetCudaDriverVersion()
        hardware.cuda_version = f"{version // 1000}.{version % 1000 // 10}"
        visible = os.environ.get(_VISIBLE)
        if visible is None or visible in _NONE_VISIBLE:
            visible = ",".join(map(str, range(pynvml.nvmlDeviceGetCount())))
        hardware.gpus.extend(_gpu(name.strip(), own) for name in visible.split(",") if name.strip())
    except pynvml.NVMLError:
        # A GPU that does not answer cannot be used: the values read so far are valid.
        return
    finally:
        pynvml.nvmlShutdown()


def _gpu(name: str, own: Collection[int]) -> Gpu:
    """Measures the GPU of an index or a UUID, and what the processes `own` occupy of it."""
    import pynvml

    by_index = name.isdigit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(int(name)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(name)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    gpu = Gpu(
        index=pynvml.nvmlDeviceGetIndex(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        memory_total_bytes=memory.total,
        memory_free_bytes=memory.free,
        compute_capability=f"{major}.{minor}",
        bf16=major >= 8,
    )
    # Some GPUs and containers do not provide these.
    try:
        gpu.temperature_celsius = pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
        gpu.utilization = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        gpu.memory_own_bytes = sum(process.usedGpuMemory or 0 for process in running if process.pid in own)
    except pynvml.NVMLError:
        return gpu
    return gpu
