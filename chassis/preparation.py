"""What a stage says while it brings an attempt's inputs here.

`say` and `progressed` work from any thread, however deep in a download, and do nothing outside of a preparation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, TypeVar

from chassis.stall_timer import StallTimer
from finetuneflow.v1 import event_pb2

_T = TypeVar("_T")


class GivenUp(Exception):
    """Nobody waits for this preparation any more. Raised in its threads, which cannot be ended otherwise, so that they
    write no further."""


class Stalled(Exception):
    """Nothing came for too long."""


class Preparation:
    """One preparation.

    `emit` is called with its Phase events; between two about progress within one phase pass `progress_seconds`.
    """

    def __init__(self, emit: Callable[[event_pb2.Phase], None], progress_seconds: float) -> None:
        self._emit = emit
        self._progress_seconds = progress_seconds
        self._loop = asyncio.get_running_loop()
        self._stall_timer = StallTimer()
        self._given_up = False
        self._phase = event_pb2.Phase()
        self._done = self._total = 0
        self._next = 0.0

    async def run(self, work: Coroutine[Any, Any, _T], limit_seconds: float) -> _T:
        """Awaits `work`. Stalled when it makes no progress for so long; then, and when this is cancelled, it ends."""
        working = asyncio.create_task(self._within(work), name="prepare")
        watching = asyncio.create_task(self._stall_timer.wait(lambda: limit_seconds), name="prepare-watch")
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                where = f" in phase {self._phase.name}" if self._phase.name else ""
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

    def say(self, name: str, detail: str = "", total_bytes: int = 0) -> None:
        """As the function of that name, for threads that know nothing of who started them."""
        self._live()
        self._phase = event_pb2.Phase(name=name, detail=detail)
        self._done, self._total = 0, total_bytes
        self._tell()

    def progressed(self, num_bytes: int = 0) -> None:
        """As the function of that name."""
        self._live()
        self._done += num_bytes
        if self._total and time.monotonic() >= self._next:
            self._phase.fraction = min(1.0, self._done / self._total)
            self._tell()

    def _live(self) -> None:
        if self._given_up:
            raise GivenUp
        self._stall_timer.reset()

    def _tell(self) -> None:
        self._next = time.monotonic() + self._progress_seconds
        phase = event_pb2.Phase()
        phase.CopyFrom(self._phase)
        self._loop.call_soon_threadsafe(self._emit, phase)


_current: ContextVar[Preparation | None] = ContextVar("preparation", default=None)


def current() -> Preparation | None:
    """The one that this task or thread works for."""
    return _current.get()


def say(name: str, detail: str = "", total_bytes: int = 0) -> None:
    """Tells the job's watchers what is being brought here from now on, such as `fetching_model`. With `total_bytes`
    they hear from time to time how much of it is here."""
    if preparation := _current.get():
        preparation.say(name, detail, total_bytes)


def progressed(num_bytes: int = 0) -> None:
    """A sign of life, after every piece of a transfer. GivenUp when it is for nothing."""
    if preparation := _current.get():
        preparation.progressed(num_bytes)
