"""How this process deals with memory that it has freed."""

import ctypes
import gc

# <malloc.h> of glibc
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 64 << 20
_YOUNG_OBJECTS = 10_000


def reuse_freed_memory() -> None:
    """Has malloc keep up to 64 MiB of freed memory for what comes next.

    By default glibc gives blocks as large as a chunk of a file back to the kernel at once, and each next one is paged
    in anew: on a stream of them that takes more time than the stream. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def collect_rarely() -> None:
    """Has Python look for garbage cycles seldom, and never among what is there by now: called when a server is up.

    A full search through the modules of a gateway takes 100 ms, in which nobody is served. What is not in a cycle is
    freed at once as before.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 10)
