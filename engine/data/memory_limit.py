"""Limits the memory that a block of code may allocate: beyond the limit, an allocation raises MemoryError."""

import resource
import time

_DATA = resource.RLIMIT_DATA
"""Counts memory that can be written, and not addresses that libraries only reserve, such as those of each thread."""
_KNOWN_SECONDS = 0.1
"""Time for which a measured size of the process is used again: measuring takes as long as rendering a short
conversation."""


# A class, not a generator: it runs for each conversation and may cost 1% at most.
class memory_limit:
    """Lets its block allocate `num_bytes`. The limit is that of the process, so other threads share it.

    With `measure` unset, the size of the process may be one that was measured a moment before: a MemoryError may then
    be caused by memory that was allocated since.
    """

    def __init__(self, num_bytes: int, *, measure: bool = True) -> None:
        self._num_bytes, self._measure = num_bytes, measure
        self._before = self._limit = resource.getrlimit(_DATA)
        self._measured = -_KNOWN_SECONDS

    def __enter__(self) -> None:
        now = time.monotonic()
        if self._measure or now - self._measured > _KNOWN_SECONDS:
            self._measured = now
            soft, hard = self._before
            allowed = _data() + self._num_bytes
            self._limit = (allowed if soft == resource.RLIM_INFINITY else min(allowed, soft), hard)
        resource.setrlimit(_DATA, self._limit)

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(_DATA, self._before)


def _data() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - for every row
            return int(file.read().split()[5]) * resource.getpagesize()
    except OSError:
        # Without /proc only the limits of steps and time apply.
        return 1 << 48
