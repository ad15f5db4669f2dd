"""Where a watcher stands in a job's history, whatever the connections in between do."""

from __future__ import annotations

from collections.abc import Iterator

from finetuneflow.resources.event import Event
from finetuneflow.resources.job import JobState
from finetuneflow.v1 import fine_tuning_service_pb2 as pb


class Cursor:
    """Events up to `sequence` were handed out or filtered out; the next connection asks for what follows it."""

    def __init__(self, after_sequence: int) -> None:
        self.sequence = after_sequence
        self.ended = False

    def advance(self, response: pb.WatchFineTuningJobResponse) -> Iterator[Event]:
        """Yields each event once and in order. The cursor moves with the event, so a consumer that stops in the
        middle of a batch has a cursor in the middle of it."""
        for message in response.events:
            if message.sequence <= self.sequence:
                continue
            self.sequence = message.sequence
            event = Event.from_proto(message)
            self.ended = event.kind == "state_changed" and JobState(event.state_changed.state).terminal
            yield event
        self.sequence = max(self.sequence, response.through_sequence)
