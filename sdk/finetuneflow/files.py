"""Local files: hashes, safe file names, and partial downloads."""

from __future__ import annotations

import hashlib
import os
import re
from io import RawIOBase
from pathlib import Path, PurePosixPath

from finetuneflow.errors import InvalidArgument, Violation

_ROWS = re.compile(r"\.(?:parquet|(?:jsonl|ndjson|json|csv|tsv|txt)(?:\.(?:gz|zst))?)$", re.IGNORECASE)
"""Endings of the files that a server reads."""
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def utf8_path(path: Path) -> Path:
    """Returns the path. Raises InvalidArgument("PATH_NOT_UTF8") if it is not UTF-8: no message can contain it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="replace")
        said = f"The name {shown!r} is not UTF-8; rename the file or folder."
        raise InvalidArgument(said, reason="PATH_NOT_UTF8", violations=[Violation("path", said)]) from None
    return path


def files_of_folder(folder: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """Returns the files of rows in a folder and the folders in it, as (relative path, file), sorted by that path; and
    the relative paths of files without an ending of rows, and of links to folders, which are not followed. Leaves out
    names that start with a dot."""
    rows: list[tuple[str, Path]] = []
    others: list[str] = []
    for file in folder.rglob("*"):
        relative = file.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts):
            continue
        if file.is_symlink() and file.is_dir():
            others.append(f"{relative.as_posix()}/ (a link)")
        elif not file.is_file():
            continue
        elif _ROWS.search(file.name):
            rows.append((relative.as_posix(), file))
        else:
            others.append(relative.as_posix())
    return sorted(rows), sorted(others)


def safe_relative_path(name: str) -> PurePosixPath:
    """Converts a server's file name to a path that stays below the folder it is joined to, on every system."""
    parts = [_UNSAFE.sub("_", part).strip() for part in re.split(r"[/\\]", name)]
    kept = [part[:200] for part in parts if part.strip(". ")]
    return PurePosixPath(*kept) if kept else PurePosixPath("unnamed")


def write_all(file: RawIOBase, chunk: memoryview) -> None:
    """Writes the whole chunk to an unbuffered file, so that a concurrent reader finds it. Raises OSError if the disk is
    full."""
    while chunk:
        chunk = chunk[file.write(chunk) :]


class PartialFile:
    """The downloaded part of `target`, in a file beside it whose name contains the SHA-256 of the whole.

    A later download of the same content finds the part and resumes.
    """

    def __init__(self, target: Path, sha256: str) -> None:
        self.target = target
        self.sha256 = sha256
        self.path = target.with_name(f".{target.name}.{sha256[:16]}.part")

    @property
    def size(self) -> int:
        """Size of the part in bytes; 0 if there is none."""
        return self.path.stat().st_size if self.path.exists() else 0

    def already_complete(self, size_bytes: int) -> bool:
        """Returns True if the target already has the whole content."""
        target = self.target
        return target.is_file() and target.stat().st_size == size_bytes and sha256_of(target) == self.sha256

    def discard(self) -> None:
        """Deletes the part."""
        self.path.unlink(missing_ok=True)

    def publish(self) -> Path:
        """Replaces the target by the part, and returns its path."""
        self.path.replace(self.target)
        return self.target
