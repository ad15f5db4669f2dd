"""Caches checkpoints on local disk by content, so that a model that is asked again is downloaded once."""

import os
import re
import threading
from pathlib import Path
from typing import Final

from chassis.store.artifact_store import ArtifactStore
from chassis.store.plain_files import delete_tree

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class CheckpointCache:
    """Keeps folders in `folder`, which belongs to this object, up to about `max_bytes`; the least recently used are
    deleted first. Its methods block, and may be called from several threads."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def link(self, store: ArtifactStore, path: str, manifest_sha256: str, target: Path) -> None:
        """Makes `target` a folder of hard links to the checkpoint's files, downloading them first if necessary.

        `target` must be on the same file system; if it exists, nothing is done. As links its files stay when the cached
        checkpoint is deleted. Raises ArtifactMissing and ArtifactCorrupt, and ValueError if `manifest_sha256` is none:
        it becomes a name.
        """
        if not _SHA256.fullmatch(manifest_sha256):
            raise ValueError(f"not a SHA-256 of 64 hexadecimal digits: {manifest_sha256[:80]!r}")
        cached = self._folder / manifest_sha256
        # Those who ask for the same checkpoint at the same time download it once.
        with self._lock:
            if target.exists():
                return
            if not cached.exists():
                store.get_folder(path, cached, manifest_sha256)
                self._evict(cached)
            os.utime(cached)
            partial = target.with_name(f".{target.name}")
            if partial.exists():
                delete_tree(partial)
            for file in _files(cached):
                link = partial / file.relative_to(cached)
                link.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, link)
            partial.rename(target)

    def _evict(self, newest: Path) -> None:
        """Deletes the least recently used above the limit, except the newest."""
        sizes = {folder: sum(file.stat().st_size for file in _files(folder)) for folder in self._folder.iterdir()}
        total = sum(sizes.values())
        for folder in sorted(sizes, key=lambda each: each.stat().st_mtime):
            if total <= self._max_bytes:
                return
            if folder != newest:
                delete_tree(folder)
                total -= sizes[folder]


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]
