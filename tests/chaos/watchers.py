"""Watchers that record every received event; those of jobs use the SDK's own watch."""

from __future__ import annotations

import random
import threading
from collections.abc import Generator, Sequence
from typing import Protocol

from finetuneflow import Client
from finetuneflow.v1.event_pb2 import Event
from finetuneflow.v1.fine_tuning_job_pb2 import Stage

GIVE_UP_SECONDS = 180.0


class Source(Protocol):
    """The watch of one gateway."""

    def __call__(self, work_id: str, cursor: int, /) -> Generator[Event]:
        """Yields the events after the cursor, and ends with the work."""
        ...


def jobs_of(client: Client) -> Source:
    """Returns the SDK's watch of jobs."""

    def events(job_id: str, cursor: int, /) -> Generator[Event]:
        for event in client.jobs.watch(job_id, after_sequence=cursor, give_up_after_seconds=GIVE_UP_SECONDS):
            yield event.proto

    return events


class Watcher:
    """Follows one piece of work to its end in a thread. With `hop_after` it goes to another gateway every so many
    events, with the cursor it has."""

    def __init__(
        self, name: str, sources: Sequence[Source], work_id: str, rng: random.Random, *, hop_after: int = 0
    ) -> None:
        self.name = name
        self.work_id = work_id
        self.seen: list[tuple[int, bytes]] = []
        """(sequence, event) in the order they came."""
        self.error = ""
        self.changed = threading.Condition()
        self.stages: set[str] = set()
        self.kinds: list[str] = []
        self._sources = sources
        self._rng = rng
        self._hop_after = hop_after
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def trained(self) -> bool:
        """Returns True if the training of its job has ended."""
        return "complete" in self.kinds

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def join(self, seconds: float) -> bool:
        self._thread.join(max(seconds, 0.0))
        return self.ended

    def _run(self) -> None:
        try:
            while not self._follow():
                pass
        except Exception as error:  # noqa: BLE001 - what a user would see; the checker reports it
            self.error = f"{type(error).__name__}: {error}"
        with self.changed:
            self.changed.notify_all()

    def _follow(self) -> bool:
        """Until the work's end (True) or the next hop."""
        source = self._rng.choice(list(self._sources))
        hop = self._rng.randint(1, self._hop_after) if self._hop_after else 0
        events = source(self.work_id, self.seen[-1][0] if self.seen else 0)
        for handed, event in enumerate(events, 1):
            with self.changed:
                self.seen.append((event.sequence, canonical(event)))
                self.stages.add(Stage.Name(event.stage).removeprefix("STAGE_"))
                self.kinds.append(event.WhichOneof("payload") or "")
                self.changed.notify_all()
            if handed == hop:
                events.close()
                return False
        return True


def canonical(event: Event) -> bytes:
    """The same bytes for the same event."""
    return event.SerializeToString(deterministic=True)
