"""The C library's heap."""

import contextlib
import ctypes
import gc


def return_freed_memory() -> None:
    """Returns freed memory to the system. Quantizing the weights leaves as much as they took, in pieces that later
    tensors do not fit into. Does nothing where the C library has no such call."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
