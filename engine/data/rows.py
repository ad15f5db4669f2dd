"""Rows as they are read from files, and the problems of rows that cannot be read."""

import datetime
import decimal
from dataclasses import dataclass
from typing import Any, Final, Literal

MAX_ROW_BYTES = 4 * 1024 * 1024
"""Maximum size of a row. A longer one is a file without line breaks, or a book: about a million tokens, of which all
but the first few thousand would be truncated. Its tokens alone would take gigabytes of memory."""
MAX_DEPTH = 100
"""Maximum nesting depth of values. No format needs more than 10."""


@dataclass(frozen=True)
class Row:
    """One row. `number` counts from 1: the line on which the row starts, as an editor shows it; in files without lines
    (JSON arrays, Parquet), its position among the rows."""

    number: int
    values: dict[str, Any]
    continues: bool = False
    """True for a piece of running text that continues in the next row: the text does not end here."""
    is_padded: bool = False
    """True if objects in the row have every key of their column, with null for absent ones, as in Parquet."""


Effect = Literal["refuses", "leaves_out", "warns"]
"""Effect of a problem. `refuses`: the data is refused even if the problem is rare, because it suggests a wrong file,
encoding, column or setting, and the other rows are likely misread. `leaves_out`: the row is incomplete and dropped; the
data is refused if too many rows are. `warns`: the row is kept, as it is or corrected."""


@dataclass(frozen=True)
class RowProblem:
    """One problem of one row: its column, its reason (UPPER_SNAKE), and a message that says how to fix it."""

    row: int
    column: str
    reason: str
    message: str
    effect: Effect = "refuses"


_TYPES: Final[tuple[tuple[type, str], ...]] = (
    (bool, "boolean"),
    (int, "number"),
    (float, "number"),
    (str, "string"),
    (list, "array"),
    (bytes, "binary value"),
    (datetime.datetime, "timestamp"),
    (datetime.date, "date"),
    (datetime.time, "time"),
    (datetime.timedelta, "duration"),
    (decimal.Decimal, "decimal number"),
)
"""In order of precedence: in Python booleans are numbers, and timestamps are dates."""


def json_type(value: Any) -> str:
    """Returns the JSON name of the type of a value, or a plain name for a type that only Parquet has."""
    if value is None:
        return "null"
    for type_, name in _TYPES:
        if isinstance(value, type_):
            return name
    return "object"


def too_long(number: int) -> RowProblem:
    """Returns the problem of a row that is longer than MAX_ROW_BYTES."""
    message = (
        f"is longer than {MAX_ROW_BYTES // 2**20} MiB; check that the file has the format of its ending, split the "
        "row, or save running text as .txt, which is divided into rows"
    )
    return RowProblem(number, "", "ROW_TOO_LONG", message)


def size_of(value: Any) -> int:
    """Returns the approximate size of a value in bytes: that of its texts, and one for each other value."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(size_of, value.values()))
    if isinstance(value, list):
        return len(value) if value and isinstance(value[0], int | float) else sum(map(size_of, value))
    return 1


def is_too_deep(value: Any) -> bool:
    """Returns True if values are nested more than MAX_DEPTH deep."""
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


def without_padding(value: Any) -> Any:
    """Returns the value without the nulls in its objects. For rows of columnar files, where an object has every key of
    its column: there, null stands for an absent key."""
    if isinstance(value, dict):
        return {key: without_padding(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_padding(item) for item in value]
    return value
