"""Watches what this process opens, starts, connects to and loads while it checks an artifact."""

import ctypes
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_OWN = ("mounts", "status", "statm", "stat", "maps", "cgroup")
"""Files below /proc about the process itself; `environ` and `mem` hold secrets."""
_READ = (
    "/proc/stat",
    "/etc/mime.types",
    "/proc/meminfo",
    "/proc/cpuinfo",
    "/sys/devices/system/",
    "/sys/fs/cgroup",
    "/usr/lib",
    "/lib",
)
_READ += ("/usr/share/zoneinfo", "/etc/localtime", "/dev/null", "/dev/urandom")
_STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
_CONNECTS = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname")
_CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown")
_CHANGES += ("os.truncate", "shutil.rmtree", "shutil.move")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_IN_ACCESS, _IN_MODIFY, _IN_OPEN, _IN_CREATE, _IN_DELETE = 0x1, 0x2, 0x20, 0x100, 0x200


class Watch:
    """Reports through audit events what Python does, and through inotify what native code does with `outside`.

    Audit hooks cannot be removed, so there is one instance.
    """

    def __init__(self, readable: Sequence[Path]) -> None:
        """`readable` are folders whose files any check may read, beside those of Python."""
        places = {*sys.path, sys.prefix, sys.base_prefix, sys.exec_prefix, *map(str, readable)}
        self._readable = tuple(f"{os.path.realpath(place)}/" for place in places if place)
        self._process = f"/proc/{os.getpid()}/"
        self._own = ""
        self._written: tuple[str, ...] = ()
        self._found: list[str] | None = None
        sys.addaudithook(self._hear)

    @contextmanager
    def on(self, folder: Path, outside: Path, written: Sequence[Path]) -> Iterator[list[str]]:
        """Yields a list that receives what is done in the block and must not be. `written` may be written to."""
        found: list[str] = []
        self._own = f"{os.path.realpath(folder)}/"
        self._written = tuple(f"{os.path.realpath(path)}/" for path in written)
        with _opened_in(outside, found):
            self._found = found
            try:
                yield found
            finally:
                self._found = None

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        found = self._found
        if found is None:
            return
        # What the hook itself does must not be heard.
        self._found = None
        try:
            if what := self._forbidden(event, arguments):
                found.append(what[:300])
        finally:
            self._found = found

    def _forbidden(self, event: str, arguments: tuple[Any, ...]) -> str:
        if event in _STARTS:
            return f"starts a process: {event} {arguments[:2]}"
        if event in _CONNECTS:
            return f"connects: {event} {arguments[1:]}"
        if event == "pickle.find_class":
            return f"unpickles {arguments[0]}.{arguments[1]}"
        if event == "open":
            return self._opens(arguments[0], arguments[2] or 0)
        if event == "ctypes.dlopen":
            return self._opens(arguments[0], 0)
        if event in _CHANGES:
            for path in arguments[1:2] if event == "os.symlink" else arguments[:2]:
                # The system deletes an output of a child once it is stored.
                place = _absolute(path)
                if place and not self._may_write(place) and not place.startswith(self._own):
                    return f"changes {place}: {event}"
        return ""

    def _opens(self, path: Any, flags: int) -> str:
        place = _absolute(path)
        if not place:
            return ""
        if flags & _WRITES:
            return "" if self._may_write(place) or place == "/dev/null" else f"writes {place}"
        if f"{place}/".startswith(self._own):
            return f"loads {place}" if place.endswith((".py", ".pyc", ".so")) else ""
        if place.startswith(self._process):
            return "" if place.removeprefix(self._process) in _OWN else f"opens {place}"
        return "" if f"{place}/".startswith((*self._readable, *self._written, *_READ)) else f"opens {place}"

    def _may_write(self, place: str) -> bool:
        return f"{place}/".startswith(self._written)


def _absolute(path: Any) -> str:
    """Returns the real path, or "" for a descriptor and for a path that is relative to one."""
    if not isinstance(path, str | bytes | os.PathLike):
        return ""
    text = os.fsdecode(path)
    return os.path.realpath(text) if text.startswith("/") or ".." in text.split("/") else ""


@contextmanager
def _opened_in(folder: Path, found: list[str]) -> Iterator[None]:
    """Adds what any code of any process does with the files of a folder in the block."""
    libc = ctypes.CDLL(None, use_errno=True)
    notes = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if notes < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    try:
        libc.inotify_add_watch(notes, os.fsencode(folder), _IN_ACCESS | _IN_MODIFY | _IN_OPEN | _IN_CREATE | _IN_DELETE)
        yield
        try:
            data = os.read(notes, 1 << 16)
        except BlockingIOError:
            return
        while data:
            _, mask, _, length = struct.unpack_from("iIII", data)
            name = data[16 : 16 + length].rstrip(b"\0").decode(errors="replace")
            found.append(f"uses outside/{name} (inotify {mask:#x})")
            data = data[16 + length :]
    finally:
        os.close(notes)
