"""Enum values of the messages as the words that people write: RUNNING for JOB_STATE_RUNNING."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from finetuneflow.errors import InvalidArgument, Violation


def enum_name(enum: Any, number: int) -> str:
    """The word of a number, by the enum's descriptor; the number as text when this client doesn't know it."""
    value = enum.values_by_number.get(number)
    return str(number) if value is None else _words(enum)[number]


def enum_number(enum: Any, value: str, field: str) -> Any:
    """The number of a word in either case. Raises InvalidArgument, for `field`, with the words there are."""
    numbers = {word: number for number, word in _words(enum).items() if number}
    number = numbers.get(value.upper()) if isinstance(value, str) else None
    if number is None:
        known = f"one of {', '.join(word.lower() for word in numbers)}, not {value!r}"
        raise InvalidArgument(
            f"{field} is not known.",
            reason="UNKNOWN_VALUE",
            violations=[
                Violation(field, "must be " + known + nearest(str(value).lower(), [word.lower() for word in numbers]))
            ],
        )
    return number


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean x?`, or nothing when no known name is near."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean `{matches[0]}`?" if matches else ""


def _words(enum: Any) -> dict[int, str]:
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    return {value.number: value.name.removeprefix(prefix) for value in enum.values}
