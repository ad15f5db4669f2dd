"""Frames: accepted events as bytes that need not be serialised again.

A frame is one `repeated Event events = 1` entry of WatchFineTuningJobResponse and of EventRun: a batch for any watcher
is `b"".join(frames)`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from chassis.events import varint
from finetuneflow.v1.event_pb2 import Event, Severity
from finetuneflow.v1.fine_tuning_job_pb2 import JobState

TERMINAL_STATES = frozenset({JobState.JOB_STATE_SUCCEEDED, JobState.JOB_STATE_FAILED, JobState.JOB_STATE_CANCELLED})
TERMINAL_KIND = "state_changed"
# Kind of a payload that this version does not know; it is stored and forwarded all the same.
UNKNOWN_KIND = "unknown"

_EVENTS_TAG = b"\x0a"  # field 1, length-delimited: `events`
_SEQUENCE_TAG = b"\x10"  # field 2, varint: Event.sequence
_THROUGH_TAG = b"\x10"  # field 2, varint: WatchFineTuningJobResponse.through_sequence


@dataclass(frozen=True, slots=True)
class Frame:
    """One accepted event: the fields that filters read, and its framed bytes."""

    sequence: int
    kind: str
    severity: int
    terminal: bool
    data: bytes


def kind_of(event: Event) -> str:
    return event.WhichOneof("payload") or UNKNOWN_KIND


def is_terminal(event: Event) -> bool:
    return event.WhichOneof("payload") == TERMINAL_KIND and event.state_changed.state in TERMINAL_STATES


def with_sequence(event: bytes, sequence: int) -> bytes:
    """Appends the sequence to a serialised event. Of a field that occurs twice, protobuf reads the last value."""
    return event + _SEQUENCE_TAG + varint(sequence)


def frame_of(event: bytes, parsed: Event, sequence: int) -> Frame:
    """Builds a frame. `event` is serialised, with its sequence; `parsed` is the same event."""
    kind = kind_of(parsed)
    terminal = kind == TERMINAL_KIND and is_terminal(parsed)
    return Frame(sequence, kind, parsed.severity or Severity.SEVERITY_INFO, terminal, _framed(event))


def frame_of_row(sequence: int, kind: str, severity: int, event: bytes) -> Frame:
    """Builds a frame from a row of SQL; the event is parsed only if it may be the terminal one."""
    terminal = kind == TERMINAL_KIND and is_terminal(Event.FromString(event))
    return Frame(sequence, kind, severity, terminal, _framed(event))


def frame_of_stored(event: bytes) -> Frame:
    """Builds a frame from a stored event."""
    parsed = Event.FromString(event)
    return frame_of(event, parsed, parsed.sequence)


def frames_of_run(run: bytes) -> list[Frame]:
    """Splits a serialised EventRun into frames, byte for byte. Raises DecodeError if it is invalid."""
    frames = []
    position = 0
    while position < len(run):
        start, size = _read_varint(run, position + 1)
        if run[position] != _EVENTS_TAG[0] or start + size > len(run):
            raise DecodeError("not a run of events")
        frames.append(frame_of_stored(run[start : start + size]))
        position = start + size
    return frames


def watch_response(frames: Iterable[Frame], through_sequence: int) -> bytes:
    """Builds a serialised WatchFineTuningJobResponse."""
    return b"".join(frame.data for frame in frames) + _THROUGH_TAG + varint(through_sequence)


def _framed(event: bytes) -> bytes:
    return _EVENTS_TAG + varint(len(event)) + event


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Reads a varint. Returns (end position, value)."""
    value = shift = 0
    while position < len(data):
        value |= (data[position] & 0x7F) << shift
        if data[position] < 0x80:
            return position + 1, value
        position, shift = position + 1, shift + 7
    raise DecodeError("a varint is not terminated")
