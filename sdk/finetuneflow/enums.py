"""Names of enum values without their prefix: RUNNING for JOB_STATE_RUNNING."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from finetuneflow.errors import InvalidArgument, Violation


def enum_name(enum: Any, number: int) -> str:
    """Returns the name of a value without its prefix; the number as text if this client doesn't know it."""
    value = enum.values_by_number.get(number)
    return str(number) if value is None else _words(enum)[number]


def enum_number(enum: Any, value: str, field: str) -> Any:
    """Returns the number of a name in upper or lower case. Raises InvalidArgument, for `field`, with the known
    names."""
    numbers = {word: number for number, word in _words(enum).items() if number}
    number = numbers.get(value.upper()) if isinstance(value, str) else None
    if number is None:
        known = f"one of {', '.join(word.lower() for word in numbers)}, not {value!r}"
        raise InvalidArgument(
            f"{field} has an unknown value.",
            reason="UNKNOWN_VALUE",
            violations=[
                Violation(field, "must be " + known + nearest(str(value).lower(), [word.lower() for word in numbers]))
            ],
        )
    return number


def nearest(name: str, known: Sequence[str], similarity: float = 0.6) -> str:
    """Returns `; did you mean x?` for the closest known name, or nothing if no name is close.

    `similarity` is the least one, from 0 to 1; of many known names, some are a little similar to any name.
    """
    matches = difflib.get_close_matches(name, known, n=1, cutoff=similarity)
    return f"; did you mean `{matches[0]}`?" if matches else ""


def _words(enum: Any) -> dict[int, str]:
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    return {value.number: value.name.removeprefix(prefix) for value in enum.values}
