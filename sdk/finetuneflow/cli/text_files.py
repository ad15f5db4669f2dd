"""Text files that a caller names in a command."""

from __future__ import annotations

from pathlib import Path

from finetuneflow.errors import InvalidArgument, Violation


def read_text(path: Path) -> str:
    """Reads a UTF-8 file, with or without a byte order mark. Raises InvalidArgument and OSError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise InvalidArgument(
            f"{path} cannot be read.",
            reason="NOT_UTF8",
            violations=[Violation(path.name, f"is not UTF-8 (line {line}); save it as UTF-8")],
        ) from error
