"""What a stage says while it brings an attempt's inputs here.

`say` and `progressed` work from any thread, however deep in a download, and do nothing outside of a preparation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Final, TypeVar

from chassis.silence import Silence
from finetuneflow.v1 import event_pb2

_T = TypeVar("_T")
_SAY_SECONDS: Final = 1.0


class GivenUp(Exception):
    """Nobody waits for this preparation any more. Raised in its threads, which cannot be ended otherwise, so that they
    write no further."""


class Stalled(Exception):
    """Nothing came for too long."""


class Preparation:
    """One of them; `emit` is called with its Phase events."""

    def __init__(self, emit: Callable[[event_pb2.Phase], None]) -> None:
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._silence = Silence()
        self._given_up = False
        self._name = ""
        self._next = 0.0

    async def run(self, work: Coroutine[Any, Any, _T], limit_seconds: float) -> _T:
        """Awaits `work`. Stalled when it makes no progress for so long; then, and when this is cancelled, it ends."""
        working = asyncio.create_task(self._within(work), name="prepare")
        watching = asyncio.create_task(self._silence.lasts(lambda: limit_seconds), name="prepare-watch")
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                where = f" in phase {self._name}" if self._name else ""
                raise Stalled(f"Nothing came for {limit_seconds:g} seconds{where}.")
            return working.result()
        finally:
            self._given_up = True
            for task in (working, watching):
                task.cancel()
            await asyncio.wait({working, watching})

    async def _within(self, work: Coroutine[Any, Any, _T]) -> _T:
        _current.set(self)
        return await work

    def _progressed(self) -> None:
        if self._given_up:
            raise GivenUp
        self._silence.heard()

    def _say(self, phase: event_pb2.Phase) -> None:
        self._progressed()
        now = time.monotonic()
        if phase.name == self._name and now < self._next:
            return
        self._name, self._next = phase.name, now + _SAY_SECONDS
        self._loop.call_soon_threadsafe(self._emit, phase)


_current: ContextVar[Preparation | None] = ContextVar("preparation", default=None)


def say(name: str, detail: str = "", fraction: float | None = None) -> None:
    """Tells the job's watchers what is being brought here, such as `fetching_model`, and how much of it is here.

    Call it as often as there is progress; what is said again within a second counts as a sign of life only.
    """
    if preparation := _current.get():
        preparation._say(event_pb2.Phase(name=name, detail=detail, fraction=fraction))


def progressed() -> None:
    """A sign of life, after every piece of a transfer. GivenUp when it is for nothing."""
    if preparation := _current.get():
        preparation._progressed()
