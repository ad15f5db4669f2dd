"""Events as messages and as bytes: what every side of the pipe, the spool and the wire agrees on."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.message import Message

from finetuneflow.v1 import event_pb2

MAX_EVENT_BYTES: Final = 64 * 1024
"""Of one serialised Event."""
ENDINGS: Final = frozenset({"stage_completed", "stage_failed", "stage_released"})
"""Kinds that end an attempt."""


def fields_by_message(oneof: Any) -> dict[str, str]:
    """Full name of a message → the field of the oneof that holds it."""
    return {field.message_type.full_name: field.name for field in oneof.fields if field.message_type}


_PAYLOADS = fields_by_message(event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"])
_SEVERITIES = {
    "resource_usage": event_pb2.SEVERITY_DEBUG,
    "warning": event_pb2.SEVERITY_WARNING,
    "stage_failed": event_pb2.SEVERITY_ERROR,
}


def event_of(payload: Message, severity: event_pb2.Severity | None = None) -> event_pb2.Event:
    """An Event around one of its payload messages, with the time of now. TypeError for any other message."""
    kind = _PAYLOADS.get(payload.DESCRIPTOR.full_name)
    if kind is None:
        raise TypeError(f"{payload.DESCRIPTOR.full_name} is no payload of an Event")
    event = event_pb2.Event(severity=severity or _SEVERITIES.get(kind, event_pb2.SEVERITY_INFO))
    event.event_time.GetCurrentTime()
    target: Message = getattr(event, kind)
    target.CopyFrom(payload)
    target.SetInParent()
    return event


def varint(number: int) -> bytes:
    """Protobuf's base-128 encoding of a length."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
