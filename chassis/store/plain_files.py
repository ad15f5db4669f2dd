"""Reads the files of a folder that another process wrote and may still change, never following a link."""

import os
import stat
from io import BufferedReader
from pathlib import Path, PurePosixPath


class NotPlainFile(Exception):
    """The folder has a link, a device, a pipe or a socket where a file or folder is expected."""


def file_names(folder: Path) -> list[str]:
    """Returns the paths of all files below `folder`, relative to it, sorted. Raises NotPlainFile."""
    names = []
    for parent, folders, files in os.walk(folder, onerror=_raise):
        for name in (*folders, *files):
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise NotPlainFile(f"{path.relative_to(folder)} is neither a file nor a folder")
            if stat.S_ISREG(mode):
                names.append(path.relative_to(folder).as_posix())
    return sorted(names)


def open_file(folder: Path, name: str) -> BufferedReader:
    """Opens the file `name` below `folder` for reading, and no other file, whatever was renamed or linked meanwhile.

    Raises NotPlainFile if a part of the path is a link, or the end of it no file.
    """
    *parents, last = PurePosixPath(name).parts
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parents:
            inner = _open(part, os.O_DIRECTORY, parent, name)
            os.close(parent)
            parent = inner
        # Without O_NONBLOCK the open of a pipe waits for its writer.
        file = _open(last, os.O_NONBLOCK, parent, name)
    finally:
        os.close(parent)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise NotPlainFile(f"{name} is not a file")
    return os.fdopen(file, "rb")


def _open(part: str, flags: int, parent: int, name: str) -> int:
    if part == "..":
        raise NotPlainFile(f"{name} leads out of its folder")
    try:
        return os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=parent)
    except OSError as error:
        if _is_link(part, parent):
            raise NotPlainFile(f"{name} has a link in its path") from error
        raise


def _is_link(part: str, parent: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(part, dir_fd=parent, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _raise(error: OSError) -> None:
    raise error
