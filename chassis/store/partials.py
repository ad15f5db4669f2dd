"""Incomplete files and folders of a store on a file system: under `.partial/`, locked by their writer, renamed when
complete.

The lock is an flock: it ends with the process that holds it, and every process that mounts the file system sees it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, cast

from chassis.failpoints import failpoint

FOLDER: Final = ".partial"


class WriteInProgress(Exception):
    """Another writer holds the file."""


class WrongOffset(Exception):
    """The file cannot be continued at this offset."""

    def __init__(self, received_bytes: int) -> None:
        super().__init__(f"{received_bytes} bytes were received")
        self.received_bytes = received_bytes


class Partials:
    """The incomplete files and folders of one store."""

    def __init__(self, root: Path) -> None:
        self._folder = root / FOLDER

    def create(self) -> tuple[Path, BinaryIO]:
        """Creates a file with a random name."""
        return self._opened(secrets.token_hex(8))

    def resume(self, key: str, offset: int) -> tuple[Path, BinaryIO]:
        """Opens the file that was started under `key` at its end, which must be `offset`; 0 starts it again.

        Raises WriteInProgress or WrongOffset.
        """
        path, file = self._opened(_name(key))
        try:
            size = file.seek(0, os.SEEK_END)
            if offset == 0:
                file.truncate(0)
                file.seek(0)
            elif offset != size:
                if not size:
                    path.unlink()
                raise WrongOffset(size)
        except BaseException:
            file.close()
            raise
        return path, file

    def held_bytes(self, key: str) -> int:
        """Returns the size of the file that was started under `key`; 0 if there is none."""
        try:
            return (self._folder / _name(key)).stat().st_size
        except FileNotFoundError:
            return 0

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """Creates a folder, and deletes it at the end unless it was renamed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        stage = self._folder / secrets.token_hex(8)
        stage.mkdir()
        descriptor = os.open(stage, os.O_RDONLY)
        try:
            # Some network file systems cannot lock folders; there only its age protects it from the sweep.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield stage
        finally:
            os.close(descriptor)
            shutil.rmtree(stage, ignore_errors=True)

    def sweep(self, older_than_seconds: float) -> None:
        """Removes files and folders that are not locked and were not changed for that long."""
        if not self._folder.is_dir():
            return
        for left in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if left.stat().st_mtime < time.time() - older_than_seconds:
                    _remove_unless_locked(left)

    def _opened(self, name: str) -> tuple[Path, BinaryIO]:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / name
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            file = cast(BinaryIO, open(descriptor, "r+b", buffering=0))  # noqa: SIM115, PTH123
            try:
                if not _locked(descriptor):
                    raise WriteInProgress(name)
                if _is_at(descriptor, path):
                    return path, file
            except BaseException:
                file.close()
                raise
            # Renamed or swept between open and lock: the open file must not be written.
            file.close()


def _name(key: str) -> str:
    return f"held-{hashlib.sha256(key.encode()).hexdigest()[:40]}"


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove_unless_locked(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if _locked(descriptor) and _is_at(descriptor, path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Makes the entries of a folder and of all folders in it durable; does not sync files."""
    for below, _, _ in os.walk(folder):
        _sync_folder(Path(below))


def publish(partial: Path, target: Path, descriptor: int | None = None) -> None:
    """Renames `partial` to `target` durably. `descriptor`, if given, must be the open file at `partial`.

    Raises OSError, also if a folder would replace something.
    """
    _make_folders(target.parent)
    failpoint("store.synced")
    if descriptor is not None and not _is_at(descriptor, partial):
        raise FileNotFoundError(errno.ENOENT, "the file was removed while it was written", str(partial))
    partial.rename(target)
    failpoint("store.renamed")
    _sync_folder(target.parent)


def _make_folders(folder: Path) -> None:
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        _sync_folder(new.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
