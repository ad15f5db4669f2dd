"""Pages: serialised responses that watchers with the same cursor and the same filter share."""

from collections.abc import Iterable
from dataclasses import dataclass

from gateway.watch.frames import Frame, watch_response

PAGE_EVENTS = 500
"""Maximum number of events in a page, filtered ones included."""
PAGE_BYTES = 256 << 10
"""Approximate size limit of a page. A watcher that reads nothing holds one page, and gRPC holds a copy of it."""


def first_bytes(frames: Iterable[Frame], limit: int = 1 << 20) -> list[Frame]:
    """Returns the first frames up to about `limit` bytes, at least one: a client accepts messages of up to 4 MiB."""
    page: list[Frame] = []
    size = 0
    for frame in frames:
        page.append(frame)
        size += len(frame.data)
        if size >= limit:
            break
    return page


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Selects the events that a watcher asked for."""

    kinds: frozenset[str]
    """Payload kinds to include. Empty: all."""
    min_severity: int
    """Lowest severity to include. 0: all."""

    def __contains__(self, frame: Frame) -> bool:
        return (not self.kinds or frame.kind in self.kinds) and frame.severity >= self.min_severity


@dataclass(frozen=True, slots=True)
class Page:
    """One response for every watcher with the same cursor and the same filter."""

    response: bytes
    """A serialised WatchFineTuningJobResponse."""
    through: int
    """Sequence of the last event that the page covers; the watcher's next position."""
    empty: bool
    """No event passed the filter."""
    ends: bool
    """The page covers the terminal event: the stream ends after it."""

    @classmethod
    def of(cls, frames: list[Frame], selected: EventFilter, through: int) -> "Page":
        """Builds the page that covers `frames` and reaches `through`."""
        chosen = [frame for frame in frames if frame in selected]
        return cls(watch_response(chosen, through), through, not chosen, any(frame.terminal for frame in frames))
