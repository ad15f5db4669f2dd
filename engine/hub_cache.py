"""The cache of models downloaded from the hub: which are in use, and which are deleted to make room for another.

A complete model has the folder `ORG--NAME/COMMIT`, or `COMMIT-tokenizer` without its weights. Beside it are
`.COMMIT.lock`, `.COMMIT.partial` for an unfinished download, and `.COMMIT.public` if everybody may read the model.
"""

import contextlib
import fcntl
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from engine.errors import LimitExceeded, SystemFailure, Violation

_log = logging.getLogger(__name__)

_SHARE_OF_DISK: Final = 0.8
"""Default of the maximum for all downloaded models: the rest is for checkpoints, spools and artifacts."""
_ENTRY = re.compile(r"\.?(?P<folder>[0-9a-f]{40}(-tokenizer)?)(\.lock|\.partial)?")


class FolderLock:
    """The lock of a model's folder: shared by those who use it, exclusive for the one who downloads or deletes it.

    It belongs to this object, so two of one process exclude each other as well. The kernel releases it when the process
    ends, however it ends. The time of its file is that of the model's last use.
    """

    def __init__(self, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._file = _lock_file(folder).open("a+b", buffering=0)

    def share(self) -> None:
        """Waits until the folder is not being downloaded or deleted, and marks it as used."""
        fcntl.flock(self._file, fcntl.LOCK_SH)
        self.touch()

    def exclude(self) -> None:
        """Waits until nobody else has the lock. The shared lock of this object is released before."""
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def try_exclude(self) -> bool:
        """Returns False if somebody else has it. The shared lock of this object is released either way."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def reserve(self, num_bytes: int) -> None:
        """Notes the size that the folder will have. It counts while this object has the exclusive lock."""
        self._file.truncate(0)
        self._file.write(str(num_bytes).encode())

    def touch(self) -> None:
        # The time that the kernel would set is that of its last tick.
        now = time.time_ns()
        os.utime(self._file.fileno(), ns=(now, now))

    def outlive_exec(self) -> None:
        """Keeps the lock when this process becomes another program."""
        os.set_inheritable(self._file.fileno(), True)

    def close(self) -> None:
        """Releases the lock."""
        self._file.close()


class ModelUses:
    """The downloaded models that one attempt or query uses; a context manager. They are not deleted before it is
    closed, or its process has ended."""

    def __init__(self) -> None:
        self._locks: list[FolderLock] = []
        self._closed = False
        self._mutex = threading.Lock()

    def add(self, lock: FolderLock) -> None:
        """Takes over a shared lock. Closes it if nobody waits for the thread of this download any more."""
        with self._mutex:
            if not self._closed:
                self._locks.append(lock)
                return
        lock.close()

    def outlive_exec(self) -> None:
        """Keeps the models in use when this process becomes another program."""
        for lock in self._locks:
            lock.outlive_exec()

    def close(self) -> None:
        with self._mutex:
            self._closed = True
        for lock in self._locks:
            # It was used until now: a training takes days.
            lock.touch()
            lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True)
class _Entry:
    """A model in the cache, or a part of one."""

    folder: Path
    last_use: int
    """In nanoseconds since 1970."""
    num_bytes: int
    """On the disk."""
    reserved: int
    """Final size, if it is being downloaded; otherwise 0."""

    @property
    def missing(self) -> int:
        return max(0, self.reserved - self.num_bytes)


class HubCache:
    """The downloaded models below `folder`. Several processes may share it. Its methods block."""

    def __init__(self, folder: Path, max_bytes: int | None, on_evicted: Callable[[Path, int], None]) -> None:
        """`max_bytes` is the maximum for all of them together; None: four fifths of the disk. `on_evicted` is called
        with the folder and size of each model that was deleted."""
        self._folder, self._max_bytes, self._on_evicted = folder, max_bytes, on_evicted

    def of(self, hub_id: str) -> Path:
        """Returns the folder with the model's commits."""
        return self._folder / hub_id.replace("/", "--")

    @contextlib.contextmanager
    def reading(self, folder: Path) -> Iterator[bool]:
        """Keeps a complete folder from being deleted during the block; yields False if there is none."""
        lock = self.used(folder)
        try:
            yield lock is not None
        finally:
            if lock:
                lock.close()

    def used(self, folder: Path) -> FolderLock | None:
        """Returns the shared lock of a complete folder; None if there is none."""
        # Without the first look, this would wait until a download has ended.
        if not folder.is_dir():
            return None
        lock = FolderLock(folder)
        lock.share()
        if folder.is_dir():
            return lock
        lock.close()
        return None

    def used_or_downloaded(self, folder: Path, download: Callable[[FolderLock], None]) -> FolderLock:
        """Returns the shared lock of a folder, which `download` makes if it does not exist. It runs in one process at a
        time and gets the exclusive lock; others wait for it."""
        lock = FolderLock(folder)
        try:
            lock.share()
            # Between the two locks, another process may have downloaded it, or deleted it again. Waiting for the
            # exclusive lock could last as long as that process uses the model.
            while not folder.is_dir():
                if lock.try_exclude() and not folder.is_dir():
                    download(lock)
                lock.share()
        except BaseException:
            lock.close()
            raise
        return lock

    def make_room(self, hub_id: str, folder: Path, lock: FolderLock, size: int) -> None:
        """Reserves `size` bytes for a folder that is to be downloaded, of which `lock` is the exclusive lock. Deletes
        the least recently used models that nobody uses if that is necessary, and nothing if it does not suffice.

        Raises LimitExceeded("MODEL_TOO_LARGE"), and SystemFailure("DISK_FULL") if models in use or other files leave
        too little room.
        """
        with contextlib.ExitStack() as locks:
            # Two downloads at once would otherwise count on the same room. Its holder waits for no other lock.
            deciding = FolderLock(self._folder)
            locks.callback(deciding.close)
            deciding.exclude()
            entries = list(self._entries(apart_from=folder))
            disk = shutil.disk_usage(folder.parent)
            limit = self._max_bytes if self._max_bytes is not None else int(_SHARE_OF_DISK * disk.total)
            missing = size - _size(partial_of(folder))
            over = size + sum(entry.num_bytes + entry.missing for entry in entries) - limit
            lacking = missing + sum(entry.missing for entry in entries) - disk.free
            why = f"a limit of {limit:,} bytes" if over > 0 else "a full disk"
            unused = []
            for entry in sorted(entries, key=lambda entry: entry.last_use):
                if over <= 0 and lacking <= 0:
                    break
                candidate = FolderLock(entry.folder)
                locks.callback(candidate.close)
                if candidate.try_exclude():
                    unused.append(entry)
                    over -= entry.num_bytes
                    lacking -= entry.num_bytes
            _refuse(hub_id, size, limit, over, missing, lacking, disk.free)
            for entry in unused:
                self._evict(entry, hub_id, why)
            lock.reserve(size)

    def _entries(self, apart_from: Path) -> Iterator[_Entry]:
        for commits in self._folder.iterdir():
            found = [_ENTRY.fullmatch(path.name) for path in commits.iterdir()] if commits.is_dir() else []
            for name in sorted({match["folder"] for match in found if match}):
                folder = commits / name
                if folder != apart_from:
                    # In this order, a download that ends meanwhile is counted, and once.
                    reserved = _reserved(folder)
                    size = max(_size(partial_of(folder)), _size(folder))
                    entry = _Entry(folder, _last_use(folder), size, reserved)
                    if entry.num_bytes or entry.reserved:
                        yield entry

    def _evict(self, entry: _Entry, hub_id: str, why: str) -> None:
        """Deletes a model of which this process has the exclusive lock."""
        folder, partial = entry.folder, partial_of(entry.folder)
        # Downloaded again, it may be public no longer. The mark goes first: without it, the hub is asked.
        public_mark(folder).unlink(missing_ok=True)
        if folder.is_dir():
            # A complete folder has its name; a deletion that is interrupted leaves an unfinished download.
            shutil.rmtree(partial, ignore_errors=True)
            folder.rename(partial)
        shutil.rmtree(partial)
        model = f"{folder.parent.name.replace('--', '/')}@{folder.name}"
        labels = {"model": model, "bytes": entry.num_bytes, "cause": why}
        _log.warning("deleted a downloaded model to make room for %s", hub_id, extra=labels)
        self._on_evicted(folder, entry.num_bytes)


def partial_of(folder: Path) -> Path:
    """Returns the folder of an unfinished download, which continues there."""
    return folder.with_name(f".{folder.name}.partial")


def public_mark(folder: Path) -> Path:
    """Returns the file that exists if everybody may read the model of this folder. A tokenizer's has none."""
    return folder.with_name(f".{folder.name}.public")


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _refuse(hub_id: str, size: int, limit: int, over: int, missing: int, lacking: int, free: int) -> None:
    """Raises the error of a download for which there is not enough room."""
    if size > limit:
        message = f"The files of {hub_id} have {size:,} bytes; the limit of all models on a node is {limit:,} bytes."
        where = [Violation("spec.base_model", message)]
        raise LimitExceeded("MODEL_TOO_LARGE", message, "Use a smaller model.", "FTF_HUB_CACHE_BYTES", where)
    if over > 0:
        message = (
            f"The files of {hub_id} have {size:,} bytes; the limit of all models on a node is {limit:,} bytes, and "
            f"those in use leave {max(0, size - over):,}."
        )
        advice = "Try again when jobs on this node have ended, or ask the operator to raise FTF_HUB_CACHE_BYTES."
        raise SystemFailure("DISK_FULL", message, advice)
    if lacking > 0:
        message = (
            f"{hub_id} needs {missing:,} more bytes on the node's disk, which has {free:,} free bytes. Without the "
            f"downloaded models that are not in use, it would still lack {lacking:,} bytes."
        )
        raise SystemFailure("DISK_FULL", message, "Ask the operator to make room, or use a smaller model.")


def _last_use(folder: Path) -> int:
    for path in (_lock_file(folder), folder, partial_of(folder)):
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_mtime_ns
    return 0


def _reserved(folder: Path) -> int:
    """Returns the size that a folder will have; 0 if no process is downloading it."""
    with contextlib.suppress(FileNotFoundError), _lock_file(folder).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read() or 0)
    return 0


def _size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            # A download renames its files.
            with contextlib.suppress(FileNotFoundError):
                total += Path(parent, name).lstat().st_size
    return total
