"""Text that a caller wrote into a file for a command to read."""

from __future__ import annotations

from pathlib import Path

from finetuneflow.errors import InvalidArgument, Violation


def read_text(path: Path) -> str:
    """A UTF-8 file, with a byte order mark or without. Raises InvalidArgument, OSError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise InvalidArgument(
            f"{path} can't be read.",
            reason="NOT_UTF8",
            violations=[Violation(path.name, f"is not UTF-8 (line {line}); save it as UTF-8")],
        ) from error
