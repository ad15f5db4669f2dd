"""What is read out of a file: rows, and what is wrong with those that are none."""

import datetime
import decimal
from dataclasses import dataclass
from typing import Any, Final, Literal

MAX_ROW_BYTES = 4 * 1024 * 1024
"""A longer row is a file without line breaks, or a book: around a million tokens, of which all but the first few
thousand would be cut off. Its tokens alone would take gigabytes of memory."""
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


Effect = Literal["refuses", "leaves_out", "warns"]
"""What a problem does. One that hints at a wrong file, encoding, column or setting refuses the data, however rare it
is: the rows beside it are likely misread. An incomplete row is left out, and refuses the data only where there are
many. The last leaves the row in, mended or merely suspicious."""


@dataclass(frozen=True)
class RowProblem:
    """One thing wrong with one row: where, what kind (UPPER_SNAKE), and how to mend it."""

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
"""The first that fits: truths are numbers to Python, timestamps dates."""


def json_type(value: Any) -> str:
    """What JSON calls the type of a value; of one that only Parquet has, what it is."""
    if value is None:
        return "null"
    for type_, name in _TYPES:
        if isinstance(value, type_):
            return name
    return "object"


def too_long(number: int) -> RowProblem:
    """The row is longer than any may be."""
    message = (
        f"is longer than {MAX_ROW_BYTES // 2**20} MiB; is the file what its ending says? Split the row, or save "
        "running text as .txt, which is cut into rows that are trained on whole"
    )
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
