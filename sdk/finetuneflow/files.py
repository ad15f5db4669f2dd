"""Files on this machine: hashes, names that are safe to write, downloads that are complete or absent."""

from __future__ import annotations

import hashlib
import os
import re
from io import RawIOBase
from pathlib import Path, PurePosixPath

from finetuneflow.errors import InvalidArgument, Violation

_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')


def sha256_of(path: Path) -> str:
    """Hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def utf8_path(path: Path) -> Path:
    """The path itself. Raises InvalidArgument("PATH_NOT_UTF8") for one that no message and no JSON can hold."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="replace")
        said = f"The name {shown!r} is not UTF-8; rename the file or folder."
        raise InvalidArgument(said, reason="PATH_NOT_UTF8", violations=[Violation("path", said)]) from None
    return path


def safe_relative_path(name: str) -> PurePosixPath:
    """A server's file name as a path that stays below the folder it is joined to, on every system."""
    parts = [_UNSAFE.sub("_", part).strip() for part in re.split(r"[/\\]", name)]
    kept = [part[:200] for part in parts if part.strip(". ")]
    return PurePosixPath(*kept) if kept else PurePosixPath("unnamed")


def write_all(file: RawIOBase, chunk: memoryview) -> None:
    """Unbuffered: whoever reads the file meanwhile finds the bytes. OSError when the disk is full."""
    while chunk:
        chunk = chunk[file.write(chunk) :]


class PartialFile:
    """The bytes of `target` that are already here, in a file beside it named after the SHA-256 of the whole.

    A later download of the same content finds them and goes on from there.
    """

    def __init__(self, target: Path, sha256: str) -> None:
        self.target = target
        self.sha256 = sha256
        self.path = target.with_name(f".{target.name}.{sha256[:16]}.part")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def already_complete(self, size_bytes: int) -> bool:
        """True when the target itself has the content already."""
        target = self.target
        return target.is_file() and target.stat().st_size == size_bytes and sha256_of(target) == self.sha256

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)

    def publish(self) -> Path:
        self.path.replace(self.target)
        return self.target
