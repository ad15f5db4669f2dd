"""The artifact store: bytes under `<tenant>/…` paths, on any fsspec URL. Every method blocks.

On a local file system a write becomes visible by one rename after fsync. On an object store each object is atomic by
itself, and a folder is complete once its manifest is there, which is written last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from chassis.failpoints import failpoint

MANIFEST: Final = "manifest.json"
_CHUNK_BYTES = 1024 * 1024
_PARTIAL = ".partial"


class ArtifactMissing(Exception):
    """Nothing is stored under that path."""


class ArtifactCorrupt(Exception):
    """What is stored is not what was hashed."""


@dataclass(frozen=True)
class Stored:
    """Something complete in the store."""

    path: str
    """With the tenant in front."""
    sha256: str
    """Of the file, or of a folder's manifest; hexadecimal."""
    size_bytes: int
    """Of all files of a folder, its manifest not counted."""


class ArtifactStore:
    """One root; `path` arguments are relative to it and start with the tenant. ValueError for a path that escapes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs: Any
        self._fs, root = fsspec.core.url_to_fs(url)
        self._root: str = root.rstrip("/")
        self._local = Path(self._root) if isinstance(self._fs, LocalFileSystem) else None

    def put_file(self, local: Path, path: str) -> Stored:
        """Copies a file into the store, over whatever is there."""
        with local.open("rb") as source, self.begin_write(path) as writer:
            while chunk := source.read(_CHUNK_BYTES):
                writer.write(chunk)
            return writer.commit()

    def put_folder(self, local: Path, path: str) -> Stored:
        """Copies a folder and adds manifest.json with the size and SHA-256 of every file.

        Storing the same content again is fine; FileExistsError when the path holds another folder.
        """
        target = self._full(path)
        names = sorted(str(file.relative_to(local).as_posix()) for file in local.rglob("*") if file.is_file())
        if MANIFEST in names:
            raise ValueError(f"{local} has a {MANIFEST} of its own")
        stage = self._partial() if self._local else None
        base = str(stage) if stage else target
        entries: list[dict[str, Any]] = []
        try:
            for name in names:
                with (local / name).open("rb") as source, _open_new(self._fs, stage, base, name) as sink:
                    digest, size = _copy(source, sink)
                entries.append({"path": name, "sha256": digest, "size_bytes": size})
            manifest = json.dumps({"version": 1, "files": entries}, indent=1, sort_keys=True).encode()
            stored = Stored(path, hashlib.sha256(manifest).hexdigest(), sum(entry["size_bytes"] for entry in entries))
            if self.exists(f"{path}/{MANIFEST}"):
                if self._digest(f"{target}/{MANIFEST}") != stored.sha256:
                    raise FileExistsError(f"{path} exists with other content")
                return stored
            with _open_new(self._fs, stage, base, MANIFEST) as sink:
                sink.write(manifest)
            if stage:
                _publish(stage, Path(target))
            return stored
        finally:
            if stage:
                shutil.rmtree(stage, ignore_errors=True)

    def get_file(self, path: str, local: Path, sha256: str) -> None:
        """Fetches a file to `local`, complete or not at all. ArtifactMissing, ArtifactCorrupt."""
        partial = _beside(local)
        local.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.open_read(path) as source, partial.open("wb") as sink:
                digest, _ = _copy(source, sink)
            if digest != sha256:
                raise ArtifactCorrupt(f"{path} has SHA-256 {digest}, expected {sha256}")
            partial.replace(local)
        finally:
            partial.unlink(missing_ok=True)

    def get_folder(self, path: str, local: Path, manifest_sha256: str) -> None:
        """Fetches a folder to `local`, which must not exist, without its manifest and with every file verified.

        ArtifactMissing, ArtifactCorrupt.
        """
        with self.open_read(f"{path}/{MANIFEST}") as source:
            manifest = source.read()
        if hashlib.sha256(manifest).hexdigest() != manifest_sha256:
            raise ArtifactCorrupt(f"the manifest of {path} is not the one with SHA-256 {manifest_sha256}")
        partial = _beside(local)
        partial.mkdir(parents=True)
        try:
            for entry in json.loads(manifest)["files"]:
                _checked(entry["path"])
                self.get_file(f"{path}/{entry['path']}", partial / entry["path"], entry["sha256"])
            partial.rename(local)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def open_read(self, path: str, offset: int = 0) -> BinaryIO:
        """The bytes from an offset on. ArtifactMissing."""
        try:
            source = self._fs.open(self._full(path), "rb")
        except (FileNotFoundError, IsADirectoryError) as error:
            raise ArtifactMissing(path) from error
        source.seek(offset)
        return cast(BinaryIO, source)

    def begin_write(self, path: str) -> AtomicWriter:
        """Starts a file that nobody sees before commit(). As a context manager it aborts what was not committed."""
        if self._local:
            return AtomicWriter(self._fs, path, Path(self._full(path)), self._partial())
        return AtomicWriter(self._fs, path, self._full(path), None)

    def delete(self, path: str) -> None:
        """Deletes a file or a folder; nothing there is fine."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._full(path), recursive=True)

    def exists(self, path: str) -> bool:
        """Whether a file or folder is there."""
        return bool(self._fs.exists(self._full(path)))

    def sweep(self, older_than_seconds: float = 86_400.0) -> None:
        """Removes what processes killed in the middle of a write have left behind."""
        if not self._local or not (self._local / _PARTIAL).is_dir():
            return
        for left in (self._local / _PARTIAL).iterdir():
            with contextlib.suppress(FileNotFoundError):
                if left.stat().st_mtime < time.time() - older_than_seconds:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()

    def _full(self, path: str) -> str:
        return f"{self._root}/{_checked(path)}"

    def _partial(self) -> Path:
        assert self._local  # noqa: S101
        folder = self._local / _PARTIAL
        folder.mkdir(parents=True, exist_ok=True)
        return folder / secrets.token_hex(8)

    def _digest(self, full: str) -> str:
        with self._fs.open(full, "rb") as source:
            return hashlib.sha256(source.read()).hexdigest()


class AtomicWriter:
    """A file on its way into the store."""

    def __init__(self, fs: Any, path: str, target: Path | str, partial: Path | None) -> None:
        self._path = path
        self._target = target
        self._partial = partial
        self._sink: Any = partial.open("wb") if partial else fs.open(target, "wb", autocommit=False)
        self._hash = hashlib.sha256()
        self._size = 0
        self._open = True

    def write(self, chunk: bytes) -> None:
        """Appends."""
        self._sink.write(chunk)
        self._hash.update(chunk)
        self._size += len(chunk)

    @property
    def size_bytes(self) -> int:
        """Bytes written so far."""
        return self._size

    @property
    def sha256(self) -> str:
        """Of the bytes written so far, hexadecimal."""
        return self._hash.hexdigest()

    def commit(self) -> Stored:
        """Makes the file visible, over whatever is there."""
        if self._partial:
            _sync(self._sink)
            self._sink.close()
            _publish(self._partial, cast(Path, self._target))
        else:
            self._sink.close()
            self._sink.commit()
        self._open = False
        return Stored(self._path, self.sha256, self._size)

    def abort(self) -> None:
        """Leaves nothing behind. After a commit it does nothing."""
        if not self._open:
            return
        self._open = False
        if self._partial:
            self._sink.close()
            self._partial.unlink(missing_ok=True)
        else:
            self._sink.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def _beside(local: Path) -> Path:
    # Not made of its name, which may be as long as the file system allows.
    return local.with_name(f".{secrets.token_hex(8)}")


def _checked(path: str) -> str:
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts) or parts[0] == _PARTIAL:
        raise ValueError(f"not a path of the artifact store: {path!r}")
    return str(PurePosixPath(*parts))


@contextlib.contextmanager
def _open_new(fs: Any, stage: Path | None, base: str, name: str) -> Iterator[Any]:
    if stage is None:
        with fs.open(f"{base}/{name}", "wb") as sink:
            yield sink
        return
    file = stage / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as sink:
        yield sink
        _sync(sink)


def _copy(source: BinaryIO, sink: Any) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    while chunk := source.read(_CHUNK_BYTES):
        sink.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def _sync(sink: Any) -> None:
    sink.flush()
    os.fsync(sink.fileno())


def _publish(partial: Path, target: Path) -> None:
    """Renames, then makes the rename itself durable."""
    target.parent.mkdir(parents=True, exist_ok=True)
    failpoint("store.synced")
    partial.replace(target)
    failpoint("store.renamed")
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
