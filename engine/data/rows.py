"""What is read out of a file: rows, and what is wrong with those that are none."""

from dataclasses import dataclass
from typing import Any

MAX_ROW_BYTES = 16 * 1024 * 1024
"""A longer row is a file without line breaks, or would not fit any model's context."""
MAX_DEPTH = 100
"""Of values inside values. No format needs more than ten."""


@dataclass(frozen=True)
class Row:
    """One row. `number` counts from 1: the line it begins on, as an editor shows it; where a file has no lines (JSON
    arrays, Parquet) its place among the rows."""

    number: int
    values: dict[str, Any]
    continues: bool = False
    """True for a piece of running text that goes on in the next row: the text does not end here."""


@dataclass(frozen=True)
class RowProblem:
    """One thing wrong with one row: where, what kind (UPPER_SNAKE), and how to mend it."""

    row: int
    column: str
    reason: str
    message: str


def json_type(value: Any) -> str:
    """What JSON calls the type of a value."""
    if value is None:
        return "null"
    names: dict[type, str] = {bool: "boolean", int: "number", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object")


def too_long(number: int) -> RowProblem:
    """The row is longer than any may be."""
    message = f"is longer than {MAX_ROW_BYTES // 2**20} MiB; is the file what its ending says?"
    return RowProblem(number, "", "ROW_TOO_LONG", message)


def is_too_deep(value: Any) -> bool:
    """Whether values are nested more than MAX_DEPTH deep."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        level = inner
        if not level:
            return False
    return True
