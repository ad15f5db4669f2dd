"""Events as messages and as bytes: rules that the pipe, the spool and the broker share."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.message import Message

from finetuneflow.v1 import event_pb2

MAX_EVENT_BYTES: Final = 64 * 1024
"""Size limit of one serialised Event."""
ENDINGS: Final = frozenset({"stage_completed", "stage_failed", "stage_released"})
"""Payload kinds that end an attempt."""


def fields_by_message(oneof: Any) -> dict[str, str]:
    """Maps the full name of each message of a oneof to its field."""
    return {field.message_type.full_name: field.name for field in oneof.fields if field.message_type}


_PAYLOADS = fields_by_message(event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"])
_SEVERITIES = {
    "resource_usage": event_pb2.SEVERITY_DEBUG,
    "warning": event_pb2.SEVERITY_WARNING,
    "stage_failed": event_pb2.SEVERITY_ERROR,
}


def event_of(payload: Message, severity: event_pb2.Severity | None = None) -> event_pb2.Event:
    """Wraps a payload message in an Event with the current time. Raises TypeError for any other message."""
    kind = _PAYLOADS.get(payload.DESCRIPTOR.full_name)
    if kind is None:
        raise TypeError(f"{payload.DESCRIPTOR.full_name} is not a payload of Event")
    event = event_pb2.Event(severity=severity or _SEVERITIES.get(kind, event_pb2.SEVERITY_INFO))
    event.event_time.GetCurrentTime()
    target: Message = getattr(event, kind)
    target.CopyFrom(payload)
    target.SetInParent()
    return event


def varint(number: int) -> bytes:
    """Encodes a length as a protobuf varint."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
