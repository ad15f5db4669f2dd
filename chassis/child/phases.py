"""The phases of a child's work: their events, progress within one, and the point where a pause or cancel is obeyed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from chassis.child.pipe import Cancelled, EventSink, Paused
from finetuneflow.v1 import event_pb2

_PROGRESS_SECONDS: Final = 2.0
"""Shortest time between two events about progress within one phase."""


class Phases:
    """Emits Phase events with index and count. For one thread.

    `names` lists every phase in order. With `pausable`, `check` and `advance` raise Paused when a pause was requested:
    for work that is repeated from its beginning after the pause. Other children decide themselves what a pause means.
    """

    def __init__(self, sink: EventSink, names: Sequence[str], *, pausable: bool) -> None:
        self._sink = sink
        self._names = names
        self._pausable = pausable
        self._name = self._detail = ""
        self._fraction: float | None = None
        self._emitted = 0.0

    def enter(self, name: str, detail: str = "", fraction: float | None = None) -> None:
        """Emits that a phase has begun; `fraction` is the share of it that is done, where that is known."""
        self._name, self._detail = name, detail
        self._emit(fraction)

    def advance(self, name: str, fraction: float | None, detail: str | None = None) -> None:
        """Reports progress, as often as the caller likes: every row, every token. `detail` replaces that of the phase.

        Enters the phase if it is another one; emits an event after two seconds and at 1.0; otherwise a tick.
        """
        self.check()
        if name != self._name:
            self.enter(name, detail or "", fraction=fraction)
            return
        self._detail = self._detail if detail is None else detail
        if time.monotonic() - self._emitted >= _PROGRESS_SECONDS or (fraction == 1.0 and self._fraction != 1.0):
            self._emit(fraction)

    def check(self) -> None:
        """Ticks, and raises Cancelled or Paused if the supervisor requested it."""
        self._sink.tick()
        requested = self._sink.requested()
        if requested == "cancel":
            raise Cancelled
        if requested == "pause" and self._pausable:
            raise Paused

    def _emit(self, fraction: float | None) -> None:
        self._emitted, self._fraction = time.monotonic(), fraction
        index = self._names.index(self._name) + 1
        self._sink.emit(
            event_pb2.Phase(
                name=self._name, index=index, count=len(self._names), detail=self._detail, fraction=fraction
            )
        )
