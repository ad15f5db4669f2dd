"""A filter of system calls (seccomp) for what Landlock does not refuse to a child. Standard library only.

Landlock refuses TCP only, from Linux 6.7 on, and not the sockets of other programs in the file system; nor does it know
owners, rights, times and attributes of files, the keys and memory that programs of a user share, or namespaces. This
filter works on every kernel in use, and applies to what the process starts.
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
_NEW_NAMESPACES = 0x7E020000
"""Flags of clone that begin a namespace. That of a time namespace exists for clone3 and unshare only."""
_PRIO_PROCESS = 0
_FILE_SYSTEM_IOCTLS = (ord("f") << 8, ord("v") << 8, ord("X") << 8)
"""Types of the requests that change attributes of files, also of those opened for reading."""
_F_SETLEASE, _F_NOTIFY = 1024, 1026
_UNKNOWN_CALL = 0x00050000 | errno.ENOSYS

_ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers on x86-64 and, where the call exists there, on 64-bit ARM.
_NETWORK: Final[dict[str, tuple[int, ...]]] = {
    # A socket that can be connected reaches any program that listens in the file system, such as dockerd.
    "connect": (42, 203),
    # Its requests open and connect sockets, unseen by this filter.
    "io_uring_setup": (425, 425),
}
_REFUSED: Final[dict[str, tuple[int, ...]]] = {
    # Rights, owners, times and attributes of files, which Landlock lets a user change wherever they are.
    "chmod": (90,),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92,),
    "fchown": (93, 55),
    "lchown": (94,),
    "fchownat": (260, 54),
    "utime": (132,),
    "utimes": (235,),
    "futimesat": (261,),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    # Notifications of changes to files anywhere.
    "inotify_init": (253,),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    # Keys, memory and messages that all programs of a user share.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # Whoever leaves the process group of the child would outlive it.
    "setsid": (112, 157),
    "setpgid": (109, 154),
    # The priority of input and output of any process of the user.
    "ioprio_set": (251, 30),
    # Memory and files of other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "open_by_handle_at": (304, 265),
    # Large parts of the kernel that no training needs.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "fsopen": (430, 430),
    "open_tree": (428, 428),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
}
_CHECKED: Final[dict[str, tuple[int, ...]]] = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "prlimit64": (302, 261),
    "clone": (56, 220),
    "clone3": (435, 435),
    "setpriority": (141, 140),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
    "ioctl": (16, 29),
    "fcntl": (72, 25),
}
"""Calls that are refused with some arguments only."""


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


def refuse_calls(*, network: bool = False) -> None:
    """Refuses sockets, but for pairs of connected ones, unless `network`; changes of another process's limits and
    priority; and the calls listed above.

    It applies to this thread and what it starts. The process needs PR_SET_NO_NEW_PRIVS.
    """
    lines = _program(os.uname().machine, network=network)
    program = _Program(len(lines), (_Instruction * len(lines))(*(_Instruction(*line) for line in lines)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def _program(machine: str, *, network: bool) -> list[tuple[int, int, int, int]]:
    """Returns the program. A jump counts the instructions that it skips, at most 255."""
    column = list(_ARCHITECTURES).index(machine)

    def numbers(calls: dict[str, tuple[int, ...]]) -> dict[str, int]:
        return {name: known[column] for name, known in calls.items() if column < len(known)}

    checked = numbers(_CHECKED)
    refused = [*numbers(_REFUSED).values(), *(() if network else numbers(_NETWORK).values())]
    # Each block ends with a return, or falls through to the next with the number of the call loaded.
    checks = [
        # glibc uses clone instead, whose flags can be seen.
        *_if_call(checked["clone3"], [(_RETURN, 0, 0, _UNKNOWN_CALL)]),
        *_if_call(checked["clone"], [(_LOAD, 0, 0, _FIRST), (_AND, 0, 0, _NEW_NAMESPACES), *_allow_if(0)]),
        *_if_call(
            checked["setpriority"],
            [
                (_LOAD, 0, 0, _FIRST),
                (_EQUAL, 1, 0, _PRIO_PROCESS),
                (_RETURN, 0, 0, _REFUSE),
                (_LOAD, 0, 0, _SECOND),
                *_allow_if(0),
            ],
        ),
        *_if_call(checked["ioctl"], [(_LOAD, 0, 0, _SECOND), (_AND, 0, 0, 0xFF00), *_refuse_if(*_FILE_SYSTEM_IOCTLS)]),
        *_if_call(checked["fcntl"], [(_LOAD, 0, 0, _SECOND), *_refuse_if(_F_SETLEASE, _F_NOTIFY)]),
        # 0 is the process itself.
        *(
            instruction
            for name in ("prlimit64", "sched_setscheduler", "sched_setparam", "sched_setattr", "sched_setaffinity")
            for instruction in _if_call(checked[name], [(_LOAD, 0, 0, _FIRST), *_allow_if(0)])
        ),
    ]
    if not network:
        kind = [(_LOAD, 0, 0, _SECOND), (_AND, 0, 0, _SOCK_TYPES)]
        # A datagram needs no connection, also in a pair. CUDA opens a socket of these types for its own processes.
        of_unix = [(_LOAD, 0, 0, _FIRST), (_EQUAL, 1, 0, _AF_UNIX), (_RETURN, 0, 0, _REFUSE), *kind]
        checks += _if_call(checked["socket"], [*of_unix, *_allow_if(_SOCK_STREAM, _SOCK_SEQPACKET)])
        checks += _if_call(checked["socketpair"], [*kind, *_allow_if(_SOCK_STREAM)])
    end = [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    numbered = [(_GREATER_OR_EQUAL, _X32), *((_EQUAL, number) for number in refused)]
    left = len(numbered) + len(checks)
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        # Other system calls, such as those of 32-bit programs, have other numbers.
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, _NUMBER),
        *((code, left - position, 0, number) for position, (code, number) in enumerate(numbered)),
        *checks,
        *end,
    ]


def _if_call(number: int, block: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    return [(_EQUAL, 0, len(block), number), *block]


def _allow_if(*values: int) -> list[tuple[int, int, int, int]]:
    """Allows the call if what was loaded is one of the values, and refuses it otherwise."""
    matches = [(_EQUAL, len(values) - position, 0, value) for position, value in enumerate(values)]
    return [*matches, (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]


def _refuse_if(*values: int) -> list[tuple[int, int, int, int]]:
    """Refuses the call if what was loaded is one of the values, and allows it otherwise."""
    matches = [(_EQUAL, len(values) - position, 0, value) for position, value in enumerate(values)]
    return [*matches, (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
