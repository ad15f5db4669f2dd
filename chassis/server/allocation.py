"""Tuning of malloc and of the garbage collector for a serving process."""

import ctypes
import gc

# <malloc.h> of glibc
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 64 << 20
_YOUNG_OBJECTS = 10_000


def reuse_freed_memory() -> None:
    """Makes malloc keep up to 64 MiB of freed memory for later allocations.

    By default glibc returns blocks as large as a chunk of a file to the kernel at once, and each following one is paged
    in again, which takes more time than the transfer of the chunk. Other C libraries are not changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def collect_rarely() -> None:
    """Makes Python search for garbage cycles less often, and not among existing objects. Call it once a server is up.

    A full search through the modules of a gateway takes 100 ms, in which no request is served. Objects outside of
    cycles are still freed at once.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 10)
