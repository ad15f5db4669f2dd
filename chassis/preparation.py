"""Progress of a preparation: a stage downloads the inputs of an attempt.

`say` and `progressed` may be called from any thread, and do nothing outside of a preparation.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, TypeVar

from chassis.stall_timer import StallTimer
from finetuneflow.v1 import event_pb2

_T = TypeVar("_T")
_R = TypeVar("_R", bound=contextlib.AbstractContextManager[Any])


class GivenUp(Exception):
    """The preparation was ended. Raised in its threads, which cannot be ended otherwise, so that they stop writing."""


class Stalled(Exception):
    """The preparation received nothing for longer than its limit."""


class Preparation:
    """One preparation.

    `emit` is called with its Phase events; between two about progress within one phase pass `progress_seconds`. `held`
    takes resources that the child needs, such as locks of its inputs; the caller closes it when the child has ended.
    """

    def __init__(
        self, emit: Callable[[event_pb2.Phase], None], progress_seconds: float, held: contextlib.ExitStack
    ) -> None:
        self.held = held
        self._emit = emit
        self._progress_seconds = progress_seconds
        self._loop = asyncio.get_running_loop()
        self._stall_timer = StallTimer()
        self._given_up = False
        self._phase = event_pb2.Phase()
        self._done = self._total = 0
        self._next = 0.0

    async def run(self, work: Coroutine[Any, Any, _T], limit_seconds: float) -> _T:
        """Awaits `work`. Raises Stalled, and ends it, if it makes no progress for `limit_seconds`."""
        working = asyncio.create_task(self._run_in_context(work), name="prepare")
        watching = asyncio.create_task(self._stall_timer.wait(lambda: limit_seconds), name="prepare-watch")
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                where = f" in phase {self._phase.name}" if self._phase.name else ""
                raise Stalled(f"No data was received for {limit_seconds:g} seconds{where}.")
            return working.result()
        finally:
            self._given_up = True
            for task in (working, watching):
                task.cancel()
            await asyncio.wait({working, watching})

    async def _run_in_context(self, work: Coroutine[Any, Any, _T]) -> _T:
        _current.set(self)
        return await work

    def say(self, name: str, detail: str = "", total_bytes: int = 0) -> None:
        """Does the same as the function of that name, for threads outside of its context."""
        self._raise_if_given_up()
        self._phase = event_pb2.Phase(name=name, detail=detail)
        self._done, self._total = 0, total_bytes
        self._emit_phase()

    def progressed(self, num_bytes: int = 0) -> None:
        """Does the same as the function of that name."""
        self._raise_if_given_up()
        self._done += num_bytes
        if self._total and time.monotonic() >= self._next:
            self._phase.fraction = min(1.0, self._done / self._total)
            self._emit_phase()

    def _raise_if_given_up(self) -> None:
        if self._given_up:
            raise GivenUp
        self._stall_timer.reset()

    def _emit_phase(self) -> None:
        self._next = time.monotonic() + self._progress_seconds
        phase = event_pb2.Phase()
        phase.CopyFrom(self._phase)
        self._loop.call_soon_threadsafe(self._emit, phase)


_current: ContextVar[Preparation | None] = ContextVar("preparation", default=None)


def current() -> Preparation | None:
    """Returns the preparation of this task or thread."""
    return _current.get()


def say(name: str, detail: str = "", total_bytes: int = 0) -> None:
    """Emits a phase, such as `fetching_model`. With `total_bytes`, later events carry the fraction received."""
    if preparation := _current.get():
        preparation.say(name, detail, total_bytes)


def progressed(num_bytes: int = 0) -> None:
    """Reports received bytes; call it after every part of a transfer. Raises GivenUp if the preparation was ended."""
    if preparation := _current.get():
        preparation.progressed(num_bytes)


def hold(resource: _R) -> _R:
    """Enters a resource, which is exited when the attempt's child has ended. Call it in the preparation's task; outside
    of a preparation it does nothing."""
    if preparation := _current.get():
        preparation.held.enter_context(resource)
    return resource
