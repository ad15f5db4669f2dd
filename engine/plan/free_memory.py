"""The free memory of a machine, compared with what a training needs."""

from typing import Any

from engine.config.job import JobConfig
from engine.estimate.architecture import Architecture
from engine.estimate.memory import GIB, Memory, Setup, estimate_memory
from engine.estimate.recommend import RESERVE, fits_host
from finetuneflow.v1.hardware_pb2 import Gpu, Hardware


class FreeMemory:
    """The memory that is free for each process of a training of one model, whose longest row has `longest_row` tokens.

    `gpu` is the one with the least free memory of those that `world_size` processes train on; processes on a CPU have
    equal shares of main memory.
    """

    def __init__(
        self, hardware: Hardware, gpu: Gpu | None, architecture: Architecture, longest_row: int, world_size: int = 1
    ) -> None:
        self.on_gpu, self.deepspeed = gpu is not None, "deepspeed" in hardware.packages
        self.host_free_bytes = hardware.memory_available_bytes
        self.free_bytes = gpu.memory_free_bytes if gpu is not None else self.host_free_bytes // world_size
        self._each = f" for each of {world_size} processes" if world_size > 1 else ""
        self._where = f"of {gpu.name}" if gpu is not None else "of main memory"
        self._architecture, self._longest = architecture, longest_row

    def needed(self, config: JobConfig, **hyper: Any) -> Memory:
        """Estimates the need of `config` with other hyperparameters; automatic recomputation counts as on."""
        changed = config.hyperparameters.model_copy(update=hyper)
        setup = Setup.of(
            config.model_copy(update={"hyperparameters": changed}), on_gpu=self.on_gpu, length=self._longest
        )
        return estimate_memory(self._architecture, setup)

    def holds(self, config: JobConfig, **hyper: Any) -> bool:
        """Returns True if the upper bound of the need leaves the reserve free."""
        found = self.needed(config, **hyper)
        return found.upper_bytes <= self.free_bytes * (1 - RESERVE) and fits_host(found, self.host_free_bytes)

    def holds_at_all(self, config: JobConfig, **hyper: Any) -> bool:
        """Returns False if the upper bound of the need exceeds what is free, reserve included."""
        found = self.needed(config, **hyper)
        return found.upper_bytes <= self.free_bytes and (
            not self.host_free_bytes or found.host_upper_bytes <= self.host_free_bytes
        )

    def compared(self, config: JobConfig, **hyper: Any) -> str:
        """Returns need and free memory as words, for use after "the training"."""
        found = self.needed(config, **hyper)
        need = f"needs about {found.total_bytes / GIB:.1f} GiB, at most {found.upper_bytes / GIB:.1f} GiB"
        free = f"{self.free_bytes / GIB:.1f} GiB {self._where} are free{self._each}"
        if found.host_bytes:
            need += f", and at most {found.host_upper_bytes / GIB:.1f} GiB of main memory for all"
            free += f", and {self.host_free_bytes / GIB:.1f} GiB of main memory"
        return f"{need}; {free}"
