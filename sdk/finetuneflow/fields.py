"""Conversion of a caller's values to fields of a request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from numbers import Real
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from finetuneflow.errors import InvalidArgument, Violation

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1

_ASKED = {
    FieldDescriptor.CPPTYPE_INT32: f"a whole number, at most {INT32_MAX:,}",
    FieldDescriptor.CPPTYPE_INT64: f"a whole number, at most {INT64_MAX:,}",
    FieldDescriptor.CPPTYPE_DOUBLE: "a finite number",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_STRING: "text",
}

M = TypeVar("M", bound=Message)


def fill(request: M, /, **values: Any) -> M:
    """Sets the named fields and returns the request; None leaves a field unset. Raises InvalidArgument with one
    violation per value that its field cannot hold."""
    wrong = []
    for name, value in values.items():
        if value is None:
            continue
        try:
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError
            request.MergeFrom(type(request)(**{name: value}))
        except (TypeError, ValueError, OverflowError):
            descriptor: Any = request.DESCRIPTOR.fields_by_name[name]
            asked = "" if descriptor.is_repeated else _ASKED.get(descriptor.cpp_type, "")
            wrong.append((name, f"must be {asked or 'of another type'}"))
    _refuse(wrong)
    return request


def timestamp(name: str, value: datetime | None) -> Timestamp | None:
    """Returns a datetime as a message, and None for None. Raises InvalidArgument without a time zone: another machine
    would read it as another time."""
    if value is None:
        return None
    if not isinstance(value, datetime) or value.utcoffset() is None:
        _refuse([(name, "must be a datetime with a time zone, such as datetime.now(UTC)")])
    message = Timestamp()
    message.FromDatetime(value.astimezone(UTC))
    return message


def check_list(name: str, value: object) -> None:
    """Raises InvalidArgument for a text where a list of texts is meant: its letters would be taken one by one."""
    if isinstance(value, str):
        _refuse([(name, f"must be a list, such as [{value[:40]!r}]")])


def check_range(name: str, value: float | None, least: int, most: int) -> None:
    """Raises InvalidArgument unless the value is None or a number in [least, most]."""
    if value is not None and not (isinstance(value, Real) and least <= value <= most):
        _refuse([(name, f"must be a number from {least:,} to {most:,}")])


def _refuse(wrong: Sequence[tuple[str, str]]) -> None:
    if wrong:
        said = "; ".join(f"{name} {description}" for name, description in wrong)
        raise InvalidArgument(f"{said}.", reason="INVALID_REQUEST", violations=[Violation(*each) for each in wrong])
