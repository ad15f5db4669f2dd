"""Caches uploaded datasets on local disk by content, so that repeated queries download and hash a file once."""

import contextlib
import os
import re
import time
from pathlib import Path

from chassis.store.artifact_store import ArtifactStore
from chassis.store.plain_files import delete_tree

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LEFTOVER_SECONDS = 2 * 3600.0
"""Age at which an entry is a leftover of a process that died: no query takes this long. A younger entry may be in use
by another process."""


_KEPT_SECONDS = 24 * 3600.0
"""Time without use after which a copy is deleted: its dataset may be deleted meanwhile."""


class DatasetCache:
    """Keeps files in `folder`, up to about `max_bytes`. Copies that were not used for a day are deleted at the next
    start or download. Its methods block; several processes may share the folder."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, keep=_SHA256)
        self._evict()

    def link(self, store: ArtifactStore, path: str, sha256: str, file: Path) -> None:
        """Creates `file` as a hard link to the cached copy, downloading it first if it is not cached.

        `file` must be on the same file system. As a link it stays readable when the cached copy is evicted. Raises
        ArtifactMissing and ArtifactCorrupt, and ValueError if `sha256` is none: it becomes the name of the copy.
        """
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"not a SHA-256 of 64 hexadecimal digits: {sha256[:80]!r}")
        cached = self._folder / sha256
        file.parent.mkdir(parents=True, exist_ok=True)
        if not _link_cached(cached, file):
            store.get_file(path, cached, sha256)
            # Another process may have evicted it meanwhile.
            if not _link_cached(cached, file):
                store.get_file(path, file, sha256)
            self._evict(cached)

    def _evict(self, newest: Path | None = None) -> None:
        """Deletes files that are old or, the least recently used first, above the limit. `newest` stays, even if it
        alone exceeds the limit."""
        files = [(stat.st_mtime, stat.st_size, file) for file in self._folder.iterdir() if (stat := _stat(file))]
        total = sum(size for _, size, _ in files)
        before = time.time() - _KEPT_SECONDS
        for used, size, file in sorted(files):
            if total <= self._max_bytes and used >= before:
                return
            if file != newest:
                file.unlink(missing_ok=True)
                total -= size


def sweep(folder: Path, keep: re.Pattern[str] | None = None) -> None:
    """Deletes the leftovers of dead processes in `folder`, except entries whose name matches `keep`."""
    before = time.time() - _LEFTOVER_SECONDS
    for entry in folder.iterdir():
        if keep is not None and keep.fullmatch(entry.name):
            continue
        stat = _stat(entry)
        if stat and stat.st_mtime < before:
            if entry.is_dir():
                delete_tree(entry)
            else:
                entry.unlink(missing_ok=True)


def _link_cached(cached: Path, file: Path) -> bool:
    """Links `file` to the cached copy and marks it as used; False if there is no cached copy."""
    try:
        os.link(cached, file)
    except FileNotFoundError:
        return False
    with contextlib.suppress(FileNotFoundError):
        os.utime(cached)
    return True


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except FileNotFoundError:
        return None
