"""A filter of system calls (seccomp) that leaves a process no socket to the outside. Standard library only.

Landlock refuses TCP only, from Linux 6.7 on, and not the sockets of other programs in the file system. This filter
works on every kernel in use, and applies to what the process starts.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import Final

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _EQUAL, _GREATER_OR_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EACCES
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24
"""Offsets in `struct seccomp_data`; of an argument, its low half."""
_X32 = 0x40000000
"""From here on, the numbers of a second set of system calls on x86-64."""
_AF_UNIX, _SOCK_STREAM, _SOCK_SEQPACKET, _SOCK_TYPES = 1, 1, 5, 0xF

_ARCHITECTURES: Final = {
    "x86_64": (0xC000003E, {"socket": 41, "connect": 42, "io_uring_setup": 425, "prlimit64": 302}),
    "aarch64": (0xC00000B7, {"socket": 198, "connect": 203, "io_uring_setup": 425, "prlimit64": 261}),
}


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def available() -> bool:
    """Returns True if the kernel has such filters and this file knows the machine's system calls."""
    if sys.platform != "linux" or os.uname().machine not in _ARCHITECTURES:
        return False
    # Without a program, a kernel that has filters fails to read it (EFAULT); any other does not know the call.
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, None, 0, 0) != 0 and ctypes.get_errno() == errno.EFAULT)


def refuse_sockets() -> None:
    """Refuses sockets, but for pairs of connected ones, and changes of another process's limits.

    It applies to this thread and what it starts. The process needs PR_SET_NO_NEW_PRIVS.
    """
    lines = _instructions(*_ARCHITECTURES[os.uname().machine])
    program = _Program(len(lines), (_Instruction * len(lines))(*(_Instruction(*line) for line in lines)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def _instructions(architecture: int, calls: dict[str, int]) -> list[tuple[int, int, int, int]]:
    """Returns the program; a jump counts the instructions that it skips."""
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        # Other system calls, such as those of 32-bit programs, have other numbers.
        (_EQUAL, 0, 15, architecture),
        (_LOAD, 0, 0, _NUMBER),
        (_GREATER_OR_EQUAL, 13, 0, _X32),
        # A socket that can be connected reaches any program that listens in the file system, such as dockerd.
        (_EQUAL, 12, 0, calls["connect"]),
        # Its requests open and connect sockets, unseen by this filter.
        (_EQUAL, 11, 0, calls["io_uring_setup"]),
        (_EQUAL, 7, 0, calls["prlimit64"]),
        (_EQUAL, 0, 8, calls["socket"]),
        (_LOAD, 0, 0, _FIRST),
        (_EQUAL, 0, 7, _AF_UNIX),
        (_LOAD, 0, 0, _SECOND),
        (_AND, 0, 0, _SOCK_TYPES),
        # A datagram needs no connection. CUDA opens one of these for its own processes.
        (_EQUAL, 3, 0, _SOCK_STREAM),
        (_EQUAL, 2, 3, _SOCK_SEQPACKET),
        (_LOAD, 0, 0, _FIRST),
        (_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
