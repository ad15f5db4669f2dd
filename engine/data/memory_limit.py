"""Limits the memory that a block of code may allocate: beyond the limit, an allocation raises MemoryError."""

import resource
import time

_KNOWN_SECONDS = 0.1
"""Time for which a measured size of the process is used again: measuring takes as long as rendering a short
conversation."""


# A class, not a generator: it runs for each conversation and may cost 1% at most.
class memory_limit:
    """Lets its block allocate `num_bytes`. The limit is that of the process, so other threads share it.

    With `measure` unset, the size of the process may be one that was measured a moment before: a MemoryError may then
    be caused by memory that was allocated since.
    """

    _size = 0
    _measured = -_KNOWN_SECONDS
    _page_size = resource.getpagesize()

    def __init__(self, num_bytes: int, *, measure: bool = True) -> None:
        self._num_bytes, self._measure = num_bytes, measure

    def __enter__(self) -> None:
        now = time.monotonic()
        if self._measure or now - memory_limit._measured > _KNOWN_SECONDS:
            memory_limit._size, memory_limit._measured = _address_space(self._page_size), now
        self._before = soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        allowed = memory_limit._size + self._num_bytes
        if soft != resource.RLIM_INFINITY:
            allowed = min(allowed, soft)
        resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self._before)


def _address_space(page_size: int) -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - for every row
            return int(file.read().split()[0]) * page_size
    except OSError:
        # Without /proc only the limits of steps and time apply.
        return 1 << 48
