"""The artifact store: bytes under `<tenant>/…` paths, on any fsspec URL. Every method blocks.

On a local file system a write becomes visible by one rename after fsync, and an interrupted file can be continued. On
an object store each object is atomic, and a folder is complete once its manifest, which is written last, exists.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, cast
from urllib.parse import unquote_to_bytes

import fsspec
from fsspec.implementations.local import LocalFileSystem

from chassis.failpoints import failpoint
from chassis.preparation import progressed
from chassis.store.partials import FOLDER as _PARTIAL
from chassis.store.partials import Partials, WrongOffset, publish, sync_tree
from chassis.store.plain_files import file_names, open_file

MANIFEST: Final = "manifest.json"
_CHUNK_BYTES = 1024 * 1024
_MAX_MANIFEST_BYTES = 64 << 20


class ArtifactMissing(Exception):
    """Nothing is stored under that path."""


class ArtifactCorrupt(Exception):
    """The stored bytes do not match their hash."""


@dataclass(frozen=True)
class Stored:
    """A complete file or folder in the store."""

    path: str
    """Path, starting with the tenant."""
    sha256: str
    """SHA-256 of the file, or of a folder's manifest, in hexadecimal."""
    size_bytes: int
    """Size of the file, or of all files of a folder without its manifest."""


class ArtifactStore:
    """A store at a root URL. `path` is relative to it and starts with the tenant; ValueError for one that escapes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs: Any
        # The client of an object store caches listings, and another process may have written since.
        self._fs, root = _file_system(url, use_listings_cache=False)
        self._root: str = root.rstrip("/")
        self._partials = Partials(Path(self._root)) if isinstance(self._fs, LocalFileSystem) else None

    def put_file(self, local: Path, path: str, within: Path | None = None) -> Stored:
        """Copies a file into the store, replacing an existing one.

        `within` is the folder that contains it and that another process may change; by default its parent folder.
        Raises NotPlainFile if `local` or a folder between it and `within` is a link.
        """
        folder = within or local.parent
        with open_file(folder, str(local.relative_to(folder))) as source, self.begin_write(path) as writer:
            while chunk := source.read(_CHUNK_BYTES):
                writer.write(chunk)
            return writer.commit()

    def put_folder(self, local: Path, path: str, within: Path | None = None) -> Stored:
        """Copies a folder and adds manifest.json with the size and SHA-256 of every file.

        Does nothing if the same content is stored already. `within` is as in `put_file`; by default the folder itself.
        Raises FileExistsError if the path holds other content, NotPlainFile if the folder has a link, and ValueError if
        it has a name that no file of the store has.
        """
        source = _Folder(within or local, str(local.relative_to(within or local)))
        names = source.names()
        if MANIFEST in names:
            raise ValueError(f"{local} has a {MANIFEST} of its own")
        target = self._full_path(path)
        if self._partials:
            with self._partials.folder() as stage:
                manifest, size = _fill(source, names, lambda name: _open_synced(stage / name))
                stored = Stored(path, hashlib.sha256(manifest).hexdigest(), size)
                sync_tree(stage)
                if not self._is_stored(stored):
                    try:
                        publish(stage, Path(target))
                    except OSError:
                        # Another process may have stored the same content meanwhile.
                        if not self._is_stored(stored):
                            if self.exists(path):
                                raise FileExistsError(f"{path} exists and is not a folder of this store") from None
                            raise
            return stored
        manifest, size = _hashed(source, names)
        stored = Stored(path, hashlib.sha256(manifest).hexdigest(), size)
        if not self._is_stored(stored):
            # Objects without a manifest were left by a killed writer of this folder.
            self.delete(path)
            try:
                written, _ = _fill(source, names, lambda name: self._fs.open(f"{target}/{name}", "wb"))
                if written != manifest:
                    raise ArtifactCorrupt(f"{local} changed while it was stored")
            except BaseException:
                self.delete(path)
                raise
        return stored

    def get_file(self, path: str, local: Path, sha256: str) -> None:
        """Downloads a file to `local` atomically. Raises ArtifactMissing or ArtifactCorrupt."""
        partial = _temporary_path(local)
        local.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.open_read(path) as source, partial.open("wb") as sink:
                digest, size = _copy(source, sink)
            if digest != sha256:
                raise ArtifactCorrupt(f"{path} has SHA-256 {digest} ({size} bytes), expected {sha256}")
            partial.replace(local)
        finally:
            partial.unlink(missing_ok=True)

    def get_folder(self, path: str, local: Path, manifest_sha256: str, *, below: str = "") -> None:
        """Downloads a folder to `local`, which must not exist, without its manifest, and verifies every file. With
        `below` only the files in that folder of it.

        Raises ArtifactMissing if there is no such folder, ArtifactCorrupt if its content is not what was stored.
        """
        entries = self._verified_entries(path, manifest_sha256)
        self._check_names(path, {MANIFEST, *entries})
        partial = _temporary_path(local)
        partial.mkdir(parents=True)
        try:
            for name, sha256 in entries.items():
                if not below or name.startswith(f"{below}/"):
                    self.get_file(f"{path}/{name}", partial / name, sha256)
            failpoint("fetch.verified")
            partial.rename(local)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def get_file_of_folder(self, path: str, name: str, local: Path, manifest_sha256: str) -> None:
        """Downloads one file of a folder to `local` atomically.

        Raises ArtifactMissing if there is no such folder or no such file in it, ArtifactCorrupt if its content is not
        what was stored.
        """
        entries = self._verified_entries(path, manifest_sha256)
        if name not in entries:
            raise ArtifactMissing(f"{path}/{name}")
        self.get_file(f"{path}/{name}", local, entries[name])

    def _verified_entries(self, path: str, manifest_sha256: str) -> dict[str, str]:
        """Returns name → SHA-256 of the files of a folder."""
        with self.open_read(f"{path}/{MANIFEST}") as source:
            manifest = source.read(_MAX_MANIFEST_BYTES + 1)
        if len(manifest) > _MAX_MANIFEST_BYTES:
            raise ArtifactCorrupt(f"the manifest of {path} is larger than {_MAX_MANIFEST_BYTES:,} bytes")
        if hashlib.sha256(manifest).hexdigest() != manifest_sha256:
            raise ArtifactCorrupt(f"the manifest of {path} is not the one with SHA-256 {manifest_sha256}")
        return _entries(path, manifest)

    def open_read(self, path: str, offset: int = 0) -> BinaryIO:
        """Opens a file at an offset. Raises ArtifactMissing."""
        try:
            source = self._fs.open(self._full_path(path), "rb")
        except (FileNotFoundError, IsADirectoryError) as error:
            raise ArtifactMissing(path) from error
        source.seek(offset)
        return cast(BinaryIO, source)

    def begin_write(self, path: str) -> AtomicWriter:
        """Starts a file that becomes visible with `commit`. As a context manager it aborts an uncommitted file."""
        if self._partials:
            return _FileWriter(path, Path(self._full_path(path)), *self._partials.create())
        return _ObjectWriter(path, self._fs.open(self._full_path(path), "wb", autocommit=False))

    def resume_write(self, path: str, key: str, offset: int) -> AtomicWriter:
        """Continues the file of an earlier writer with the same key, which was suspended or killed; 0 starts again.

        Existing bytes are hashed first. Raises WriteInProgress or WrongOffset. An object store keeps no incomplete
        files.
        """
        if self._partials:
            return _FileWriter(path, Path(self._full_path(path)), *self._partials.resume(key, offset))
        if offset:
            raise WrongOffset(0)
        return self.begin_write(path)

    def held_bytes(self, key: str) -> int:
        """Returns the offset at which `resume_write` would continue."""
        return self._partials.held_bytes(key) if self._partials else 0

    def delete(self, path: str) -> None:
        """Deletes a file or a folder, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._full_path(path), recursive=True)

    def exists(self, path: str) -> bool:
        """Returns True if a file or folder exists. Some object stores still show folders whose files were deleted."""
        return bool(self._fs.exists(self._full_path(path)))

    def sweep(self, older_than_seconds: float = 86_400.0) -> None:
        """Removes incomplete files of killed processes and interrupted uploads, unless they are being written."""
        if self._partials:
            self._partials.sweep(older_than_seconds)

    def _full_path(self, path: str) -> str:
        return f"{self._root}/{_checked(path)}"

    def _is_stored(self, stored: Stored) -> bool:
        """Returns True if this folder is stored already. Raises FileExistsError for other content."""
        try:
            with self.open_read(f"{stored.path}/{MANIFEST}") as source:
                digest = hashlib.sha256(source.read()).hexdigest()
        except (ArtifactMissing, NotADirectoryError):
            return False
        if digest != stored.sha256:
            raise FileExistsError(f"{stored.path} exists with other content")
        return True

    def _check_names(self, path: str, expected: set[str]) -> None:
        full = self._full_path(path)
        found = {name.removeprefix(full).lstrip("/") for name in self._fs.find(full)}
        if found != expected:
            missing, extra = sorted(expected - found), sorted(found - expected)
            raise ArtifactCorrupt(f"{path} does not hold what its manifest says: missing {missing}, extra {extra}")


class AtomicWriter:
    """Writes one file of the store, which becomes visible with `commit`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        """Bytes written so far, including those of an earlier writer."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes hashed so far, in hexadecimal."""
        return self._hash.hexdigest()

    def write(self, chunk: bytes | memoryview) -> None:
        """Appends and hashes a chunk."""
        self.append(chunk)
        self.hash(chunk)

    def hash(self, chunk: bytes | memoryview) -> None:
        """Hashes a chunk; may run in parallel to `append`."""
        self._hash.update(chunk)

    def append(self, chunk: bytes | memoryview) -> None:
        """Appends a chunk without hashing it."""
        raise NotImplementedError

    def sync(self) -> None:
        """Makes the written bytes durable, so that `commit` has less to do. Raises OSError."""

    def commit(self) -> Stored:
        """Makes the file visible, replacing an existing one."""
        raise NotImplementedError

    def retract(self) -> None:
        """Undoes a commit: the file becomes invisible again."""
        raise NotImplementedError

    def suspend(self) -> None:
        """Closes the file and keeps uncommitted bytes for `resume_write`, where the store supports that."""
        self.abort()

    def abort(self) -> None:
        """Closes the file and deletes uncommitted bytes."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


class _FileWriter(AtomicWriter):
    """Writes a local file; holds the lock of its partial file until that is renamed or abandoned."""

    def __init__(self, path: str, target: Path, partial: Path, sink: BinaryIO) -> None:
        super().__init__(path)
        self._target = target
        self._partial = partial
        self._sink = sink
        self._committed = False
        try:
            self._hash_what_is_there()
        except BaseException:
            sink.close()
            raise

    def append(self, chunk: bytes | memoryview) -> None:
        view = memoryview(chunk)
        while view:
            # On a nearly full disk a write may be partial; the next one raises.
            written = self._sink.write(view)
            self.size_bytes += written
            view = view[written:]

    def sync(self) -> None:
        os.fdatasync(self._sink.fileno())

    def commit(self) -> Stored:
        os.fsync(self._sink.fileno())
        publish(self._partial, self._target, self._sink.fileno())
        self._committed = True
        return Stored(self._path, self.sha256, self.size_bytes)

    def retract(self) -> None:
        # The failed commit may not have reached the rename, another writer may have started since, and some file
        # systems have no links: then the upload starts again.
        with contextlib.suppress(OSError):
            self._partial.hardlink_to(self._target)
        self._target.unlink(missing_ok=True)
        self._committed = False

    def suspend(self) -> None:
        if not self._sink.closed and not self.size_bytes:
            self.abort()
        self._sink.close()

    def abort(self) -> None:
        if not self._sink.closed and not self._committed:
            self._partial.unlink(missing_ok=True)
        self._sink.close()

    def _hash_what_is_there(self) -> None:
        length = self._sink.seek(0, os.SEEK_CUR)
        self._sink.seek(0)
        buffer = memoryview(bytearray(_CHUNK_BYTES if length else 0))
        while self.size_bytes < length:
            count = self._sink.readinto(buffer[: length - self.size_bytes])  # type: ignore[attr-defined]
            self.hash(buffer[:count])
            self.size_bytes += count


class _ObjectWriter(AtomicWriter):
    def __init__(self, path: str, sink: Any) -> None:
        super().__init__(path)
        self._sink = sink
        self._ended = False

    def append(self, chunk: bytes | memoryview) -> None:
        self._sink.write(chunk)
        self.size_bytes += len(chunk)

    def commit(self) -> Stored:
        self._sink.close()
        self._sink.commit()
        self._ended = True
        return Stored(self._path, self.sha256, self.size_bytes)

    def retract(self) -> None:
        self._sink.fs.rm(self._sink.path)

    def abort(self) -> None:
        if not self._ended:
            self._ended = True
            self._sink.discard()


def _temporary_path(local: Path) -> Path:
    # Not derived from the name, which may be as long as the file system allows.
    return local.with_name(f".{secrets.token_hex(8)}")


def _checked(path: str) -> str:
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts) or parts[0] == _PARTIAL:
        raise ValueError(f"not a path of the artifact store: {path!r}")
    # A name that is not UTF-8 has no key in an object store. UnicodeEncodeError is a ValueError.
    path.encode()
    return str(PurePosixPath(*parts))


@dataclass(frozen=True)
class _Folder:
    """The folder `below` in `root`, of which another process may change everything but the path of `root`."""

    root: Path
    below: str

    def names(self) -> list[str]:
        return [_checked(name) for name in file_names(self.root, self.below)]

    def open(self, name: str) -> BufferedReader:
        return open_file(self.root, f"{self.below}/{name}")


def _fill(local: _Folder, names: list[str], create: Callable[[str], Any]) -> tuple[bytes, int]:
    """Copies files into what `create` opens, the manifest last; returns the manifest and the bytes of all files."""
    entries: list[dict[str, Any]] = []
    for name in names:
        with local.open(name) as source, create(name) as sink:
            digest, size = _copy(source, sink)
        entries.append({"path": name, "sha256": digest, "size_bytes": size})
    manifest = _manifest(entries)
    with create(MANIFEST) as sink:
        sink.write(manifest)
    return manifest, sum(entry["size_bytes"] for entry in entries)


def _hashed(local: _Folder, names: list[str]) -> tuple[bytes, int]:
    """Returns what `_fill` would return, without copying."""
    entries: list[dict[str, Any]] = []
    for name in names:
        with local.open(name) as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
            entries.append({"path": name, "sha256": digest, "size_bytes": source.tell()})
    return _manifest(entries), sum(entry["size_bytes"] for entry in entries)


def _manifest(entries: list[dict[str, Any]]) -> bytes:
    return json.dumps({"version": 1, "files": entries}, indent=1, sort_keys=True).encode()


def _entries(path: str, manifest: bytes) -> dict[str, str]:
    """Reads name → SHA-256 from a manifest whose hash was verified. Raises ArtifactCorrupt if it is invalid."""
    try:
        entries = {_checked(entry["path"]): str(entry["sha256"]) for entry in json.loads(manifest)["files"]}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ArtifactCorrupt(f"the manifest of {path} is invalid: {error}") from error
    if MANIFEST in entries:
        raise ArtifactCorrupt(f"the manifest of {path} lists itself")
    return entries


@contextlib.contextmanager
def _open_synced(file: Path) -> Iterator[BinaryIO]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as sink:
        yield sink
        sink.flush()
        os.fsync(sink.fileno())


def _copy(source: BinaryIO, sink: Any) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    while chunk := source.read(_CHUNK_BYTES):
        sink.write(chunk)
        digest.update(chunk)
        size += len(chunk)
        progressed(len(chunk))
    return digest.hexdigest(), size


def _file_system(url: str, **options: Any) -> tuple[Any, str]:
    """Returns the file system of a URL and the path on it.

    fsspec does not decode a file URL, and reads `::` in it as a chain of URLs.
    """
    if url.startswith("file://"):
        return LocalFileSystem(**options), os.fsdecode(unquote_to_bytes(url.removeprefix("file://")))
    fs, root = fsspec.core.url_to_fs(url, **options)
    return fs, root


def on_disk_of(url: str, folder: Path) -> bool:
    """Returns True if the store at `url` is on the same file system as `folder`. Neither need exist yet."""
    fs, root = _file_system(url)
    if not isinstance(fs, LocalFileSystem):
        return False
    return _device(Path(root)) == _device(folder)


def _device(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return path.stat().st_dev
