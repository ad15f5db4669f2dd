"""The processes of a training that compute together."""

import os
import resource
from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, Final, Self

import psutil
import torch
from torch import distributed
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.distributed.tensor import DTensor

from engine.model.load import Device
from services.trainer.worker.launch import RANK, RENDEZVOUS

_START_TIMEOUT: Final = timedelta(minutes=10)
"""Time that all ranks have to complete their imports."""
_TIMEOUT: Final = timedelta(hours=2)
"""Time after which a rank gives up waiting for another one. Its supervisor ends a training that hangs much sooner."""


class Ranks:
    """The processes of a training, of which this one is number `rank`, from 0. Alone if `world_size` is 1."""

    def __init__(self, rank: int = 0, world_size: int = 1, group: Any = None) -> None:
        self.rank, self.world_size = rank, world_size
        self._group = group

    @classmethod
    def join(cls, world_size: int, on: Device) -> Self:
        """Joins the other processes, if there are any. Waits for all of them."""
        if world_size == 1:
            return cls()
        rank = int(os.environ[RANK])
        # Where DeepSpeed is installed, accelerate imports it. On a CPU it asks for the memory of its process, in a
        # folder of /proc that confinement hides from a rank.
        psutil.Process.memory_info = _memory
        if on == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # Without the file, by the addresses in the environment, which torchrun and Ray set.
        store = None
        if RENDEZVOUS in os.environ:
            store = FileStore(os.environ[RENDEZVOUS], world_size)
            store.set_timeout(_START_TIMEOUT)
        distributed.init_process_group(
            "nccl" if on == "cuda" else "gloo", store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT
        )
        # Totals are on the host, and must not wait for the device.
        return cls(rank, world_size, distributed.new_group(backend="gloo", timeout=_TIMEOUT))

    @property
    def first(self) -> bool:
        """True for the one process that reports and writes."""
        return self.rank == 0

    def totals(self, values: Sequence[float]) -> list[float]:
        """Returns the sum of each value over all ranks. All of them call it, with equally many values."""
        if self.world_size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(sums, group=self._group)
        return [float(value) for value in sums]

    def highest(self, value: float) -> float:
        """Returns the highest value of all ranks. All of them call it."""
        if self.world_size == 1:
            return value
        highest = torch.tensor([value], dtype=torch.float64)
        distributed.all_reduce(highest, distributed.ReduceOp.MAX, group=self._group)
        return float(highest)

    def wait_for_all(self) -> None:
        """Waits until every rank has called it."""
        self.totals([0.0])


def share_of(value: Any) -> Any:
    """Returns this rank's share of a tensor that is divided among the ranks; any other value unchanged."""
    return value.to_local() if isinstance(value, DTensor) else value


def _memory(_: psutil.Process) -> SimpleNamespace:
    return SimpleNamespace(rss=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
