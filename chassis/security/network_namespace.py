"""A network of its own for a child: its processes reach each other over the loopback interface, and nothing else.

Standard library only: a child is confined before it imports anything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Final

_NEW_NETWORK, _NEW_USER = 0x40000000, 0x10000000
_SIOCSIFFLAGS: Final = 0x8914
_UP, _RUNNING = 0x1, 0x40
_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def enter() -> bool:
    """Moves this process into a new network with a loopback interface. Returns False if the system refuses that, as
    container runtimes do by default.

    Without the right to do so it enters a new user namespace as well, in which it has its own user and group alone.
    """
    # Some systems allow the namespace and then refuse its interface; a process cannot leave a network again.
    attempt = os.fork()
    if attempt == 0:
        status = 1
        with contextlib.suppress(OSError):
            _enter()
            status = 0
        os._exit(status)
    if os.waitpid(attempt, 0)[1] != 0:
        return False
    _enter()
    return True


def _enter() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NETWORK) != 0:
        user, group = os.geteuid(), os.getegid()
        if libc.unshare(_NEW_NETWORK | _NEW_USER) != 0:
            raise OSError(ctypes.get_errno(), "unshare failed")
        for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            Path("/proc/self", name).write_text(line, "ascii")
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _UP | _RUNNING))


def ephemeral_ports() -> range:
    """Returns the ports of which the system chooses one for a socket that asks for any."""
    first, last = map(int, _PORTS.read_text("ascii").split())
    return range(first, last + 1)
