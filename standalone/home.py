"""Manages the data folder of a system and its lock."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

_LOCK = "up.lock"


def default_home() -> Path:
    """Returns FTF_HOME, or ~/.finetuneflow."""
    return Path(os.environ.get("FTF_HOME") or "~/.finetuneflow").expanduser().absolute()


def make_private(home: Path) -> bool:
    """Creates `home` if it is missing, readable by its owner only. Returns True if other users could read it before."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = home.stat()
    if not status.st_mode & 0o077 or status.st_uid != os.geteuid():
        return False
    home.chmod(0o700)
    return True


@dataclass(frozen=True)
class Holder:
    """The process that runs a system in a home folder."""

    pid: int
    address: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid}, on {self.address} since {self.since}"


class HomeTaken(Exception):
    """Another process runs a system in this home. `holder` is None until that process has written its details."""

    def __init__(self, home: Path, holder: Holder | None) -> None:
        super().__init__(f"{home} is in use by {holder or 'another process, which is starting'}.")
        self.holder = holder


@contextmanager
def held(home: Path, address: str) -> Iterator[None]:
    """Locks `home`, which exists, for this process. The lock ends with the process, even after a crash.

    Raises HomeTaken.
    """
    with (home / _LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HomeTaken(home, holder(home)) from None
        me = Holder(os.getpid(), address, datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z"))
        file.truncate(0)
        file.write(json.dumps(vars(me)))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def holder(home: Path) -> Holder | None:
    """Returns the process that has locked `home`, or None."""
    try:
        with (home / _LOCK).open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read()
                return Holder(**json.loads(text)) if text else None
    except FileNotFoundError:
        pass
    return None
