"""The free memory of a machine, compared with what a training needs."""

from typing import Any

from engine.config.job import JobConfig
from engine.estimate.architecture import Architecture
from engine.estimate.memory import GIB, Memory, Setup, estimate_memory
from engine.estimate.recommend import RESERVE
from finetuneflow.v1.hardware_pb2 import Gpu, Hardware


class FreeMemory:
    """The memory that is free for a training of one model, whose longest row has `longest_row` tokens."""

    def __init__(self, hardware: Hardware, gpu: Gpu | None, architecture: Architecture, longest_row: int) -> None:
        self.on_gpu = gpu is not None
        self.free_bytes = gpu.memory_free_bytes if gpu is not None else hardware.memory_available_bytes
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
        return self.needed(config, **hyper).upper_bytes <= self.free_bytes * (1 - RESERVE)

    def compared(self, config: JobConfig, **hyper: Any) -> str:
        """Returns need and free memory as words, for use after "the training"."""
        found = self.needed(config, **hyper)
        need = f"needs about {found.total_bytes / GIB:.1f} GiB, at most {found.upper_bytes / GIB:.1f} GiB"
        return f"{need}; {self.free_bytes / GIB:.1f} GiB {self._where} are free"
