"""Converts proto messages to frozen dataclasses, as the dataclass's own type hints say.

| in the message | in the dataclass |
|---|---|
| enum | a StrEnum without the type's prefix; an unset one is None where the hint allows it |
| Timestamp | an aware datetime in UTC |
| `optional` scalar or message that is unset, hint `X | None` | None |
| repeated, map | tuple, dict |
| FineTuningJobSpec, hint `dict` | the table that `jobs.create` takes |
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Any, Self, cast

from google.protobuf.message import Message

from finetuneflow.enums import enum_name
from finetuneflow.spec import spec_to_dict

Read = Callable[[Any], Any]


class OpenEnum(StrEnum):
    """A string enum that also accepts values that a newer server sends and this client doesn't know."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        member = str.__new__(cls, value)
        member._name_ = value
        member._value_ = value
        return member


@dataclass(frozen=True, kw_only=True)
class Resource:
    """Base class of everything that the client returns."""

    proto: Message = field(repr=False, compare=False)
    """The complete message that the resource was read from."""

    @classmethod
    def from_proto(cls, message: Message) -> Self:
        """Reads the resource from `message`."""
        values = {name: read(message) for name, read in _readers(cast(Any, cls), message.DESCRIPTOR).items()}
        return cls(proto=message, **values)


@cache
def _readers(cls: Any, descriptor: Any) -> dict[str, Read]:
    hints = typing.get_type_hints(cls)
    by_name = descriptor.fields_by_name
    return {f.name: _reader(hints[f.name], by_name[f.name]) for f in fields(cls) if f.name != "proto"}


def _reader(hint: Any, descriptor: Any) -> Read:
    name = descriptor.name
    optional = isinstance(hint, types.UnionType)
    if optional:
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    convert = _converter(hint, descriptor)
    if optional and descriptor.enum_type is not None:
        return lambda message: convert(number) if (number := getattr(message, name)) else None
    if optional:
        return lambda message: convert(getattr(message, name)) if message.HasField(name) else None
    return lambda message: convert(getattr(message, name))


def _converter(hint: Any, descriptor: Any) -> Read:
    if typing.get_origin(hint) is tuple:
        item = _converter(typing.get_args(hint)[0], descriptor)
        return lambda values: tuple(item(value) for value in values)
    if typing.get_origin(hint) is dict or hint is dict:
        is_map = descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry
        return dict if is_map else spec_to_dict
    if issubclass(hint, Resource):
        from_proto: Read = hint.from_proto
        return from_proto
    if hint is datetime:
        return lambda timestamp: timestamp.ToDatetime(tzinfo=UTC)
    if issubclass(hint, OpenEnum):
        return lambda number: hint(enum_name(descriptor.enum_type, number))
    return lambda value: value
