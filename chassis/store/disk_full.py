"""Detects a full disk from an exception, or from the last lines that a child printed."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final

_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_SAYS: Final = ("[Errno 28]", "(os error 28)", "[Errno 122]", "(os error 122)", "No space left on device")
"""Messages of Python, of Rust, and of programs that use strerror."""


def is_disk_full(error: BaseException) -> bool:
    """Returns True if the disk, or the user's quota of it, is full."""
    return isinstance(error, OSError) and error.errno in _ERRORS


def tells_of_full_disk(lines: Iterable[str]) -> bool:
    """Returns True if one of the lines reports a full disk."""
    return any(words in line for line in lines for words in _SAYS)
