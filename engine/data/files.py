"""Reads files of rows, one row at a time, so that a file larger than memory can be trained on."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import JobError

MAX_ROW_BYTES = 16 * 1024 * 1024
"""A longer row is a file without line breaks, or would not fit any model's context."""


@dataclass(frozen=True)
class Row:
    """One row; `number` is its line in the file, from 1, as an editor shows it."""

    number: int
    values: dict[str, Any]


@dataclass(frozen=True)
class RowProblem:
    """One thing wrong with one row: where, what kind (UPPER_SNAKE), and how to mend it."""

    row: int
    column: str
    reason: str
    message: str


def read_rows(path: Path) -> Iterator[Row | RowProblem]:
    """Rows and unreadable rows of a file, in its order; blank lines are skipped.

    Raises JobError("UNSUPPORTED_FILE") for an ending other than .jsonl.
    """
    if path.suffix.lower() != ".jsonl":
        ending = path.suffix or "no ending"
        raise JobError(
            "UNSUPPORTED_FILE",
            f"{path.name} has {ending}; files of rows are read as .jsonl.",
            "Write one JSON object a line into a file whose name ends in .jsonl, and upload that.",
        )
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(line) > MAX_ROW_BYTES:
                yield _problem(
                    number, "ROW_TOO_LONG", f"is longer than {MAX_ROW_BYTES // 2**20} MiB; is the file JSON Lines?"
                )
                return
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _parse(number, line)


def _parse(number: int, line: bytes) -> Row | RowProblem:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _problem(number, "NOT_UTF8", f"not UTF-8: byte {error.start + 1} of the line; save the file as UTF-8")
    except json.JSONDecodeError as error:
        return _problem(number, "NOT_JSON", f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return _problem(number, "NOT_JSON", f"not JSON that can be read: {error}")
    if not isinstance(values, dict):
        return _problem(number, "NOT_AN_OBJECT", f"a JSON {json_type(values)}, not an object of columns")
    return Row(number, values)


def json_type(value: Any) -> str:
    """What JSON calls the type of a value."""
    if value is None:
        return "null"
    names: dict[type, str] = {bool: "boolean", int: "number", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object")


def _problem(number: int, reason: str, message: str) -> RowProblem:
    return RowProblem(number, "", reason, message)
