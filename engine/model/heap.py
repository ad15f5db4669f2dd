"""The C library's heap."""

import contextlib
import ctypes


def return_freed_memory() -> None:
    """Returns freed memory to the system: loading leaves as much as the weights took, in pieces that the tensors of
    training do not fit into. Does nothing where the C library has no such call."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
