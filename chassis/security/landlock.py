"""System calls of Landlock: a process gives up files, TCP and signals to others, for itself and all that it starts.

Standard library only: a child is confined before it imports anything else. The packages on PyPI that wrap these calls
are young and do not offer more than this file.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import sys
from collections.abc import Iterable, Mapping
from typing import Final

MIN_ABI: Final = 2
"""Linux 5.19. Version 1 refuses every rename from one folder to another."""
SIGNALS_ABI: Final = 6
"""Linux 6.12."""

EXECUTE: Final = 1 << 0
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_MOVE, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_RIGHTS_OF_FILES = EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE

LIST: Final = _READ_DIR
READ: Final = _READ_FILE | _READ_DIR
RUN: Final = READ | EXECUTE
WRITE: Final = ((1 << 15) - 1) & ~EXECUTE
"""Everything but running programs: read, write, create, rename and delete."""
ALL_PORTS: Final = range(1 << 16)
USE_DEVICE: Final = READ | _WRITE_FILE | _IOCTL_DEVICE

# The numbers are the same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1 << 0
_RULE_PATH_BENEATH, _RULE_NET_PORT = 1, 2
_BIND_TCP, _CONNECT_TCP = 1 << 0, 1 << 1
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1 << 0, 1 << 1


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


class _NetPort(ctypes.Structure):
    _fields_ = (("allowed_access", ctypes.c_uint64), ("port", ctypes.c_uint64))


def abi() -> int:
    """Returns the version of Landlock that the kernel offers; 0 if it offers none."""
    if sys.platform != "linux":
        return 0
    with contextlib.suppress(OSError):
        return _call(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    return 0


def restrict(grants: Mapping[str, int] | None, *, ports: Iterable[int]) -> None:
    """Restricts this thread, its later threads and its later processes; it cannot be undone, only narrowed.

    `grants` maps a path to what may be done there and below; a path that does not exist is ignored; None leaves files
    alone. TCP reaches the `ports` only; if there are any, a socket may also bind to any free port. The process needs
    PR_SET_NO_NEW_PRIVS. Kernels that lack a part leave that part unrestricted.
    """
    version = abi()
    if version < MIN_ABI:
        return
    # Every ruleset refuses moves between folders, also one about the network, unless it names and grants them.
    handled = _MOVE if grants is None else _all_rights(version)
    ruleset = _Ruleset(handled_access_fs=handled)
    size = 8
    if version >= 4:
        size = 16
        ruleset.handled_access_net = 0 if ports == ALL_PORTS else _BIND_TCP | _CONNECT_TCP
    if version >= SIGNALS_ABI:
        size = 24
        ruleset.scoped = _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS
    fd = _call(_CREATE_RULESET, ctypes.byref(ruleset), size, 0)
    try:
        for path, rights in ({"/": _MOVE} if grants is None else grants).items():
            _grant(fd, path, rights & handled)
        if ruleset.handled_access_net and (listed := list(ports)):
            for port in (0, *listed):
                rule = _NetPort(allowed_access=_BIND_TCP | _CONNECT_TCP if port else _BIND_TCP, port=port)
                _call(_ADD_RULE, fd, _RULE_NET_PORT, ctypes.byref(rule), 0)
        _call(_RESTRICT_SELF, fd, 0)
    finally:
        os.close(fd)


def _grant(ruleset: int, path: str, rights: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(parent).st_mode):
            rights &= _RIGHTS_OF_FILES
        rule = _PathBeneath(allowed_access=rights, parent_fd=parent)
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(parent)


def _all_rights(version: int) -> int:
    """Returns the rights on files that this version knows: it added one each with 2, 3 and 5."""
    return (1 << (13 + (version >= 2) + (version >= 3) + (version >= 5))) - 1


def _call(number: int, *arguments: object) -> int:
    result = int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return result
