"""Datasets that were looked at, kept by their content: the next look at one, or the next of ten previews, fetches and
hashes nothing."""

import contextlib
import os
import re
import shutil
import time
from pathlib import Path

from chassis.store.artifact_store import ArtifactStore

_NAME = re.compile(r"[0-9a-f]{64}")
_LEFTOVER_SECONDS = 2 * 3600.0
"""Nothing takes longer: what is older was left by a process that died. Younger things may be another process's."""


class DatasetCache:
    """Files below `folder`, at most about `max_bytes` of them. Its methods block; safe in several processes."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, keep=_NAME)

    def bring(self, store: ArtifactStore, path: str, sha256: str, file: Path) -> None:
        """Puts the file to `file`, on the same file system. Raises ArtifactMissing, ArtifactCorrupt.

        It is a second name for the bytes: they stay there while they are read, whatever is thrown out meanwhile.
        """
        kept = self._folder / sha256
        file.parent.mkdir(parents=True, exist_ok=True)
        if not _linked(kept, file):
            store.get_file(path, kept, sha256)
            if not _linked(kept, file):
                store.get_file(path, file, sha256)
            self._make_room(kept)

    def _make_room(self, newest: Path) -> None:
        """The longest unused go first; one that alone is larger than the limit stays until the next comes."""
        files = [(stat.st_mtime, stat.st_size, file) for file in self._folder.iterdir() if (stat := _stat(file))]
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if total <= self._max_bytes:
                return
            if file != newest:
                file.unlink(missing_ok=True)
                total -= size


def sweep(folder: Path, keep: re.Pattern[str] | None = None) -> None:
    """Takes away what a process that died has left in `folder`, but for names that `keep` matches."""
    before = time.time() - _LEFTOVER_SECONDS
    for entry in folder.iterdir():
        if keep is not None and keep.fullmatch(entry.name):
            continue
        stat = _stat(entry)
        if stat and stat.st_mtime < before:
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def _linked(kept: Path, file: Path) -> bool:
    try:
        os.link(kept, file)
    except FileNotFoundError:
        return False
    with contextlib.suppress(FileNotFoundError):
        os.utime(kept)
    return True


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except FileNotFoundError:
        return None
