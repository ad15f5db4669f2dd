"""Resource usage of a child: memory and CPU of its process tree, and its GPUs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

import psutil

from finetuneflow.v1 import event_pb2


class Usage:
    """Measures the process `pid` and all its descendants. Every method takes milliseconds and blocks."""

    def __init__(self, pid: int, devices: Mapping[str, str]) -> None:
        """`devices` may name the GPUs in CUDA_VISIBLE_DEVICES, by index or UUID."""
        self._pid = pid
        self._gpus = [name.strip() for name in devices.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        self._since = time.monotonic()
        self._cpu: dict[tuple[int, float], float] = {}
        self._spent = 0.0
        self._told = 0.0
        self._memory = 0
        self._peak = 0

    def sample(self) -> None:
        """Takes one sample; the more often, the more exact is the peak."""
        memory, first = 0, not self._cpu
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess), process.oneshot():
                memory += process.memory_info().rss
                times = process.cpu_times()
                key = (process.pid, process.create_time())
                spent = times.user + times.system
                self._spent += spent - self._cpu.get(key, spent if first else 0.0)
                self._cpu[key] = spent
        if memory:
            self._memory = memory
            self._peak = max(self._peak, memory)

    def take(self) -> event_pb2.ResourceUsage:
        """Returns the last sample of memory, its peak, and the CPU use since the last call."""
        now = time.monotonic()
        cores = (self._spent - self._told) / (now - self._since) if now > self._since else 0.0
        self._since, self._told = now, self._spent
        return event_pb2.ResourceUsage(
            memory_bytes=self._memory, peak_memory_bytes=self._peak, cpu_cores=cores, gpus=list(self._gpu_usage())
        )

    def _tree(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self._pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _gpu_usage(self) -> Iterator[event_pb2.GpuUsage]:
        if not self._gpus:
            return
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return
        try:
            for name in self._gpus:
                yield _gpu_usage(name)
        except pynvml.NVMLError:
            # The GPU may have failed: the values read so far are valid.
            return
        finally:
            pynvml.nvmlShutdown()


def _gpu_usage(name: str) -> event_pb2.GpuUsage:
    import pynvml as nvml

    by_index = name.isdigit()
    handle = nvml.nvmlDeviceGetHandleByIndex(int(name)) if by_index else nvml.nvmlDeviceGetHandleByUUID(name)
    usage = event_pb2.GpuUsage(
        index=nvml.nvmlDeviceGetIndex(handle), memory_used_bytes=nvml.nvmlDeviceGetMemoryInfo(handle).used
    )
    # Some GPUs and containers do not provide these.
    with contextlib.suppress(nvml.NVMLError):
        usage.utilization = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    with contextlib.suppress(nvml.NVMLError):
        usage.temperature_celsius = nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
    with contextlib.suppress(nvml.NVMLError):
        usage.power_watts = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
    return usage
