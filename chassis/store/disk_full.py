"""How a full disk shows: as an error of this process, and in what a child printed last."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final

_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_SAYS: Final = ("[Errno 28]", "(os error 28)", "[Errno 122]", "(os error 122)", "No space left on device")
"""Of Python, of Rust, and of everything that asks strerror."""


def is_disk_full(error: BaseException) -> bool:
    """Whether the disk, or what a user may have of it, is full."""
    return isinstance(error, OSError) and error.errno in _ERRORS


def tells_of_full_disk(lines: Iterable[str]) -> bool:
    """Whether one of the lines of a failure says so."""
    return any(words in line for line in lines for words in _SAYS)
