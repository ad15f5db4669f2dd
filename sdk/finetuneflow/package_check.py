"""Checks a downloaded package without a server: its files against its manifest, and its signature.

The package is untrusted: nothing of it is unpacked, and no more of a file is read than the manifest says it has.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Final

from finetuneflow.package_signature import SIGNATURE, BadSignature, check, check_manifest, signed_by

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MANIFEST: Final = "manifest.json"
ZIP: Final = "finetuneflow_export.zip"
_MAX_MANIFEST_BYTES: Final = 64 << 20
_MAX_SIGNATURE_BYTES: Final = 64 << 10
_CHUNK: Final = 1 << 20
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_UNREADABLE: Final = (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
"""Errors of damaged, encrypted or unknown entries of a zip."""


class Fault(StrEnum):
    """Kind of a difference between a package and its manifest."""

    MISSING = "missing"
    """The manifest names the file, and the package does not have it."""
    ADDED = "added"
    """The package has the file, and the manifest does not name it."""
    CHANGED = "changed"
    """Its bytes are not those of the manifest."""
    UNSAFE_PATH = "unsafe_path"
    """Its path could lead out of the folder into which the package is unpacked, or it is a link or a device."""
    DUPLICATE = "duplicate"
    """The zip or the manifest has the path twice, so that readers may see different files."""
    UNREADABLE = "unreadable"
    """It cannot be read."""


class Signature(StrEnum):
    """Outcome of the check of a package's signature."""

    VALID = "valid"
    """One of the given keys has signed the package."""
    INVALID = "invalid"
    """None of the given keys has signed this package; without keys, manifest.sig cannot be read or is for another
    manifest."""
    NONE = "none"
    """The package is not signed."""
    NOT_CHECKED = "not_checked"
    """No key was given, so that anybody may have made the package; manifest.sig, if there is one, fits the manifest as
    far as the package cryptography is installed, which checks it."""


@dataclass(frozen=True)
class Difference:
    """A file that is not as the manifest says."""

    path: str
    fault: Fault
    message: str


@dataclass(frozen=True)
class PackageCheck:
    """The outcome of a check."""

    package: str
    """The path that was checked."""
    job_id: str
    """The fine-tuning job that the manifest names, or the export (`ex_…`) of a base model; empty if the manifest cannot
    be read."""
    num_files: int
    """Number of files whose bytes are those of the manifest."""
    size_bytes: int
    """Their size."""
    manifest_sha256: str
    """SHA-256 of manifest.json; empty if it cannot be read."""
    differences: tuple[Difference, ...]
    signature: Signature
    signature_message: str
    """For INVALID, why; otherwise empty."""
    operator_key: str
    """Fingerprint of the operator's key that the signature names; proved if `signature` is VALID. Empty: none."""

    @property
    def passed(self) -> bool:
        """True if every file is as the manifest says, manifest.sig can be read, and a given key has signed the manifest
        if one was given."""
        return not self.differences and self.signature in (Signature.VALID, Signature.NOT_CHECKED)


def check_package(package: Path, keys: Mapping[str, Ed25519PublicKey] | None = None) -> PackageCheck:
    """Checks a package: its zip, or the folder that it was unpacked or downloaded into.

    Args:
        package: The zip or the folder.
        keys: The operator's public keys by fingerprint (`package_signature.read_keys`), several while a key is
            replaced. None: the signature is not checked.

    Returns:
        Every difference, and what is known about the signature. A package that is no zip has one difference.

    Raises:
        OSError: The package does not exist, or cannot be read.
    """
    if not package.is_dir():
        return _check_zip(package, keys)
    found = _checked(str(package), _Folder(package), keys)
    if not (package / ZIP).is_file():
        return found
    # A download has the zip beside the files that are in it.
    within = _check_zip(package / ZIP, keys)
    differences = [replace(each, path=f"{ZIP}: {each.path}") for each in within.differences]
    if within.manifest_sha256 != found.manifest_sha256:
        message = "its manifest.json is not the one in the folder"
        differences.append(Difference(ZIP, Fault.CHANGED, message))
    return replace(found, differences=(*found.differences, *differences))


class _Files(ABC):
    """The files of a package by path, and what is wrong with their names."""

    paths: list[str]
    differences: list[Difference]

    @abstractmethod
    def opened(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """Opens a file. Raises one of _UNREADABLE."""

    def read(self, path: str, limit: int) -> bytes | None:
        """Returns the bytes of a file; None if there is none, if it cannot be read, or if it is larger."""
        if path not in self.paths:
            return None
        try:
            with self.opened(path) as source:
                data = source.read(limit + 1)
        except _UNREADABLE:
            return None
        return data if len(data) <= limit else None


class _Folder(_Files):
    def __init__(self, root: Path) -> None:
        self._root = root
        self.paths, self.differences = [], []
        for folder, folders, files in os.walk(root):
            for name in sorted([*folders, *files]):
                file = Path(folder, name)
                path, mode = file.relative_to(root).as_posix(), file.lstat().st_mode
                if stat.S_ISREG(mode):
                    self.paths += [path] if path != ZIP else []
                elif not stat.S_ISDIR(mode):
                    self.differences.append(Difference(path, Fault.UNSAFE_PATH, "it is a link or a device, not a file"))

    @contextmanager
    def opened(self, path: str) -> Iterator[IO[bytes]]:
        with (self._root / path).open("rb") as source:
            yield source


class _Zip(_Files):
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.paths, self.differences = [], []
        counts = Counter(entry.filename for entry in archive.infolist())
        for entry in archive.infolist():
            path, mode = entry.filename, entry.external_attr >> 16
            # zipfile cuts a name at its first NUL, which other readers may not do.
            if unsafe_path(path.removesuffix("/")) or "\0" in entry.orig_filename:
                self.differences.append(
                    Difference(path, Fault.UNSAFE_PATH, "its path leads out of the package's folder")
                )
            elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                self.differences.append(Difference(path, Fault.UNSAFE_PATH, "it is a link or a device, not a file"))
            elif counts[path] > 1:
                self.differences.append(Difference(path, Fault.DUPLICATE, f"the zip has it {counts[path]} times"))
                counts[path] = -1
            elif counts[path] == 1 and not entry.is_dir():
                self.paths.append(path)

    @contextmanager
    def opened(self, path: str) -> Iterator[IO[bytes]]:
        with self._archive.open(path) as source:
            yield source


def kind_of(job_id: str) -> str:
    """Returns what the `job_id` of a manifest names: a `job`, or the `export` of a base model, which no job trained."""
    return "export" if job_id.startswith("ex_") else "job"


def unsafe_path(path: str) -> bool:
    """Returns True for a path that does not stay, on every system, inside the folder it is joined to."""
    parts = path.split("/")
    return (
        not path
        or any(part in ("", ".", "..") for part in parts)
        or any(character in path for character in '\\:*?"<>|')
        or any(ord(character) < 32 for character in path)
        or PurePosixPath(path).is_absolute()
    )


def _check_zip(package: Path, keys: Mapping[str, Ed25519PublicKey] | None) -> PackageCheck:
    with package.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _checked(str(package), _Zip(archive), keys)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            broken = Difference(package.name, Fault.UNREADABLE, f"it is no zip that can be read: {error}")
            signature = Signature.NOT_CHECKED if keys is None else Signature.NONE
            return PackageCheck(str(package), "", 0, 0, "", (broken,), signature, "", "")


@dataclass(frozen=True)
class _Entry:
    """A file as the manifest describes it."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class _Manifest:
    job_id: str = ""
    step: int | None = None
    """Step of the packed checkpoint; None in a package of an earlier version."""
    entries: tuple[_Entry, ...] = ()

    @classmethod
    def of(cls, data: bytes) -> _Manifest:
        """Reads manifest.json. Raises ValueError."""
        try:
            values = json.loads(data)
            entries = tuple(_Entry(each["path"], each["sha256"], each["size_bytes"]) for each in values["files"])
            found = cls(values["job_id"], values.get("step"), entries)
            version = values["version"]
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise ValueError("it is not in the form of a package's manifest") from error
        texts = (found.job_id, *(entry.path for entry in entries))
        sizes = [entry.size_bytes for entry in entries] + ([] if found.step is None else [found.step])
        if (
            version != 1
            or not all(isinstance(text, str) for text in texts)
            or not all(isinstance(entry.sha256, str) and _SHA256.fullmatch(entry.sha256) for entry in entries)
            or not all(type(size) is int and size >= 0 for size in sizes)
        ):
            raise ValueError("it has values that no manifest of a package has")
        return found


def _checked(package: str, files: _Files, keys: Mapping[str, Ed25519PublicKey] | None) -> PackageCheck:
    differences = list(files.differences)
    data = files.read(MANIFEST, _MAX_MANIFEST_BYTES)
    manifest, size, good = None, 0, 0
    if data is None:
        fault = Fault.UNREADABLE if MANIFEST in files.paths else Fault.MISSING
        message = "without it nothing of the package can be checked"
        differences.append(Difference(MANIFEST, fault, message))
    else:
        try:
            manifest = _Manifest.of(data)
        except ValueError as error:
            differences.append(Difference(MANIFEST, Fault.UNREADABLE, str(error)))
    named = {MANIFEST, SIGNATURE, *(difference.path for difference in differences)}
    seen: set[str] = set()
    for entry in manifest.entries if manifest else ():
        difference = _difference(files, entry, repeated=entry.path in seen)
        seen.add(entry.path)
        if difference is None:
            good, size = good + 1, size + entry.size_bytes
        elif difference.path not in named:
            differences.append(difference)
    if manifest is not None:
        added = [path for path in files.paths if path not in seen | named]
        differences += [Difference(path, Fault.ADDED, "the manifest does not name it") for path in added]
    digest = "" if data is None else hashlib.sha256(data).hexdigest()
    state, why, key = _signature(files, data, manifest, keys)
    return PackageCheck(
        package, manifest.job_id if manifest else "", good, size, digest, tuple(differences), state, why, key
    )


def _difference(files: _Files, entry: _Entry, *, repeated: bool) -> Difference | None:
    """Returns how a file differs from its entry in the manifest; None if it does not."""
    if repeated:
        return Difference(entry.path, Fault.DUPLICATE, "the manifest names it twice")
    if unsafe_path(entry.path):
        return Difference(entry.path, Fault.UNSAFE_PATH, "the manifest's path leads out of the package's folder")
    if entry.path not in files.paths:
        return Difference(entry.path, Fault.MISSING, "the package does not have it")
    hashed, size = hashlib.sha256(), 0
    try:
        with files.opened(entry.path) as source:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if size > entry.size_bytes:
                    break
                hashed.update(chunk)
    except _UNREADABLE as error:
        return Difference(entry.path, Fault.UNREADABLE, f"it cannot be read: {error}")
    if size != entry.size_bytes:
        sizes = f"{size:,} bytes" if size < entry.size_bytes else "more bytes"
        return Difference(entry.path, Fault.CHANGED, f"it has {sizes}; the manifest says {entry.size_bytes:,}")
    if hashed.hexdigest() != entry.sha256:
        return Difference(entry.path, Fault.CHANGED, "its SHA-256 is not the one in the manifest")
    return None


def _signature(
    files: _Files, data: bytes | None, manifest: _Manifest | None, keys: Mapping[str, Ed25519PublicKey] | None
) -> tuple[Signature, str, str]:
    """Returns what is known about the signature, why if it is invalid, and the fingerprint of the key that it names."""
    if SIGNATURE not in files.paths:
        return Signature.NOT_CHECKED if keys is None else Signature.NONE, "", ""
    signature, key = files.read(SIGNATURE, _MAX_SIGNATURE_BYTES), ""
    try:
        if signature is None:
            raise BadSignature(f"{SIGNATURE} cannot be read")
        key = signed_by(signature)
        if keys is None:
            if data is not None and importlib.util.find_spec("cryptography"):
                check_manifest(signature, data)
            return Signature.NOT_CHECKED, "", key
        if data is None or manifest is None:
            raise BadSignature("there is no manifest.json that it could be about")
        statement = check(signature, data, keys)
        if (statement.job_id, statement.step) != (manifest.job_id, manifest.step):
            named = f"{kind_of(statement.job_id)} {statement.job_id}, step {statement.step}"
            raise BadSignature(f"it is for {named}, not for the manifest's")
    except BadSignature as error:
        return Signature.INVALID, str(error), key
    return Signature.VALID, "", key
