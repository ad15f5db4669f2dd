"""The number of threads that a computation should have beside what else the machine does."""

import os
import time
from typing import Final

import psutil

_INTERVAL_SECONDS: Final = 1.0


class FreeCores:
    """Measures how many cores other processes use: threads that share a core with them all wait for the slowest."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._threads = most
        self._measured = self._now()

    def threads(self) -> int:
        """Returns the number of cores that were free in the last second: at least 1, at most `most`."""
        at, busy, own = self._now()
        before, busy_before, own_before = self._measured
        if at - before >= _INTERVAL_SECONDS:
            others = max(busy - busy_before - (own - own_before), 0.0) / (at - before)
            free = (os.cpu_count() or 1) - others
            self._threads = min(max(round(free), 1), self._most)
            self._measured = (at, busy, own)
        return self._threads

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Returns the time, and the processor time of all processes and of this one, in seconds."""
        all_ = psutil.cpu_times()
        busy = sum(all_) - all_.idle - getattr(all_, "iowait", 0.0) - getattr(all_, "guest", 0.0)
        return time.monotonic(), busy, time.process_time()
