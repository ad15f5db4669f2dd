"""The newest events of one watched job, in memory, and the waking of its watchers."""

import asyncio

from gateway.watch.cursor import Cursor
from gateway.watch.frames import Frame
from gateway.watch.pages import PAGE_BYTES, PAGE_EVENTS, EventFilter, Page, first_bytes

_RING_BYTES = 1 << 20
# Waking a watcher costs about 60 µs, for one event as for fifty. The next wave therefore waits until the last one can
# be over, unless enough events are pending that joining more of them into one message gains nothing.
_WAVE_SECONDS = 0.0025
_WAVE_SECONDS_PER_WATCHER = 0.00006
_FULL_WAVE_EVENTS = 50


class Ring:
    """The newest frames of one job, contiguous, about 1 MiB of them. It never holds an event that SQL lacks."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._frames: list[Frame] = []
        self._pages: dict[tuple[int, EventFilter], Page] = {}
        self.bytes = 0
        """Total size of the frames held."""
        self.newest = 0
        """The greatest sequence known to be in SQL, whether held here or not."""
        self.gone = False
        """The job was deleted."""
        self.cursors: set[Cursor] = set()
        """The watchers of this job."""
        self._wave: asyncio.TimerHandle | None = None
        self._last_wave = 0.0
        self._woken_for = 0

    def extend(self, frames: list[Frame]) -> None:
        """Appends the frames that follow, drops those it has, and starts again after a gap."""
        held = self._frames
        for frame in frames:
            if held and frame.sequence <= held[-1].sequence:
                continue
            if held and frame.sequence != held[-1].sequence + 1:
                held.clear()
                self.bytes = 0
            held.append(frame)
            self.bytes += len(frame.data)
        surplus = 0
        while self.bytes > _RING_BYTES and surplus < len(held) - 1:
            self.bytes -= len(held[surplus].data)
            surplus += 1
        del held[:surplus]
        self._pages.clear()
        if held:
            self.advance(held[-1].sequence)

    def advance(self, newest: int) -> None:
        """Records that SQL holds events up to `newest`, and wakes the watchers if that is news."""
        if newest > self.newest:
            self.newest = newest
            self._wake_soon()

    def end(self) -> None:
        """Records that the job was deleted, and wakes the watchers."""
        self.gone = True
        self._wake_soon()

    def page(self, position: int, selected: EventFilter) -> Page | None:
        """Returns the page after `position`, or None if the ring does not hold the next event."""
        held = self._frames
        if not held or position + 1 < held[0].sequence or position >= held[-1].sequence:
            return None
        found = self._pages.get((position, selected))
        if found is None:
            start = position + 1 - held[0].sequence
            frames = first_bytes(held[start : start + PAGE_EVENTS], PAGE_BYTES)
            found = self._pages[position, selected] = Page.of(frames, selected, frames[-1].sequence)
        return found

    async def beyond(self, cursor: Cursor) -> bool:
        """Waits until there is an event beyond `cursor`. Returns False if the cursor became overdue first."""
        if not self._has_events_for(cursor):
            await cursor.wait()
        # The wave may be about events that this watcher was sent before the wave reached it.
        return self._has_events_for(cursor)

    def _has_events_for(self, cursor: Cursor) -> bool:
        return self.newest > cursor.position or self.gone

    def _wake_soon(self) -> None:
        full = self.newest - self._woken_for >= _FULL_WAVE_EVENTS
        if self._wave is not None:
            if not full:
                return
            self._wave.cancel()
        gap = _WAVE_SECONDS if full else _WAVE_SECONDS + _WAVE_SECONDS_PER_WATCHER * len(self.cursors)
        self._wave = self._loop.call_at(self._last_wave + gap, self._wake)

    def _wake(self) -> None:
        self._wave = None
        self._woken_for = self.newest
        self._last_wave = self._loop.time()
        for cursor in self.cursors:
            cursor.wake()
