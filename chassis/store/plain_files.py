"""Reads the files of a folder that another process wrote and may still change, never following a link."""

import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path, PurePosixPath

_log = logging.getLogger(__name__)

_MAX_FILES = 100_000
_MAX_DEPTH = 32
_MAX_HOLLOW_BYTES = 64 << 20
_MAX_HOLLOW_RATIO = 100
"""Maximum ratio of a file's size to the bytes that it has on disk. A file of holes would fill the disk of its copy."""


class NotPlainFile(Exception):
    """The folder has a link, a device, a pipe or a socket where a file or folder is expected, or no ordinary amount of
    files."""


def file_names(folder: Path, below: str = ".") -> list[str]:
    """Returns the paths of all files in the folder `below` in `folder`, relative to it, sorted. Raises NotPlainFile."""
    names: list[str] = []
    with _opened(folder, f"{below}/.") as (parent, _):
        for name in _names(parent, ""):
            names.append(name)
            if len(names) > _MAX_FILES:
                raise NotPlainFile(f"{below} has more than {_MAX_FILES:,} files")
    return sorted(names)


def _names(folder: int, prefix: str) -> Iterator[str]:
    if prefix.count("/") > _MAX_DEPTH:
        raise NotPlainFile(f"{prefix[:80]} has folders that are nested more than {_MAX_DEPTH} deep")
    with os.scandir(folder) as entries:
        for entry in entries:
            path = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                inner = _open(entry.name, os.O_DIRECTORY, folder, path)
                try:
                    yield from _names(inner, f"{path}/")
                finally:
                    os.close(inner)
            elif entry.is_file(follow_symlinks=False):
                yield path
            else:
                raise NotPlainFile(f"{path} is neither a file nor a folder")


def open_file(folder: Path, name: str) -> BufferedReader:
    """Opens the file `name` below `folder` for reading, and no other file, whatever was renamed or linked meanwhile.

    Raises NotPlainFile if a part of the path is a link, or the end of it no file, or a file of holes.
    """
    with _opened(folder, name) as (parent, last):
        # Without O_NONBLOCK the open of a pipe waits for its writer.
        file = _open(last, os.O_NONBLOCK, parent, name)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise NotPlainFile(f"{name} is not a file")
        if _is_hollow(file):
            raise NotPlainFile(f"{name} has far more bytes than it has on disk")
    except BaseException:
        os.close(file)
        raise
    return os.fdopen(file, "rb")


def delete_tree(folder: Path) -> None:
    """Deletes a folder and all that processes that have ended left there, at any depth and with any rights.

    Logs what cannot be deleted. Nothing may change the folder meanwhile.
    """
    pending = [folder]
    error: OSError | None = None
    while pending:
        current = pending.pop()
        try:
            current.chmod(0o700)
            with os.scandir(current) as entries:
                for entry in list(entries):
                    if entry.is_dir(follow_symlinks=False):
                        # Moved to the top: thousands of nested folders have no path that the system accepts.
                        Path(entry.path).chmod(0o700)
                        pending.append(Path(entry.path).rename(folder / secrets.token_hex(16)))
                    else:
                        Path(entry.path).unlink()
            if current != folder:
                current.rmdir()
        except FileNotFoundError:
            continue
        except OSError as failure:
            error = failure
    try:
        folder.rmdir()
    except FileNotFoundError:
        return
    except OSError as failure:
        _log.warning("%s cannot be deleted: %s", folder, error or failure)


def remove_folder(folder: Path, name: str) -> None:
    """Deletes the folder `name` below `folder`, as far as possible, and nothing outside it."""
    with suppress(OSError, NotPlainFile, RecursionError), _opened(folder, name) as (parent, last):
        shutil.rmtree(last, ignore_errors=True, dir_fd=parent)


@contextmanager
def _opened(folder: Path, name: str) -> Iterator[tuple[int, str]]:
    """Opens the parent folder of `name`; yields its descriptor and the last part of `name`."""
    *parents, last = name.split("/")
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in PurePosixPath(*parents).parts:
            inner = _open(part, os.O_DIRECTORY, parent, name)
            os.close(parent)
            parent = inner
        yield parent, last
    finally:
        os.close(parent)


def _open(part: str, flags: int, parent: int, name: str) -> int:
    if part == "..":
        raise NotPlainFile(f"{name} leads out of its folder")
    try:
        return os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=parent)
    except OSError as error:
        if _is_special(part, parent):
            raise NotPlainFile(f"{name} has a link in its path, or is a socket") from error
        raise


def _is_special(part: str, parent: int) -> bool:
    try:
        mode = os.stat(part, dir_fd=parent, follow_symlinks=False).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _is_hollow(file: int) -> bool:
    def hollow() -> bool:
        found = os.fstat(file)
        return found.st_size > max(_MAX_HOLLOW_BYTES, found.st_blocks * 512 * _MAX_HOLLOW_RATIO)

    if not hollow():
        return False
    # Some file systems allocate the blocks of a new file when it is flushed.
    os.fsync(file)
    return hollow()
