"""Live streams: one subscription per gateway, one ring per watched work, one cursor per watcher."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import contextmanager

from google.protobuf.message import DecodeError
from sqlalchemy.exc import DBAPIError

from chassis.bus import subjects
from chassis.bus.event_bus import Bus, BusUnavailable
from chassis.errors import NotFound, OutOfRange, Unavailable, Violation
from chassis.server import gauges
from gateway.sql.database import Database
from gateway.sql.database_errors import DatabaseUnavailable
from gateway.watch.cursor import Cursor
from gateway.watch.frames import Frame, frames_of_run, watch_response
from gateway.watch.history import History
from gateway.watch.pages import EventFilter
from gateway.watch.ring import Ring
from gateway.work.kinds import Kind, no_such
from gateway.work.lifecycle import TERMINAL

log = logging.getLogger(__name__)

_TAIL_CHECK_SECONDS = 1.0


def check_within(kind: Kind, work_id: str, after_sequence: int, last_sequence: int) -> None:
    """Raises OutOfRange for a cursor beyond the last event."""
    if after_sequence > last_sequence:
        raise OutOfRange(
            "CURSOR_BEYOND_END",
            f"after_sequence is {after_sequence}, but {kind.noun} {work_id} has {last_sequence} events so far.",
            [Violation("after_sequence", f"at most {last_sequence}")],
        )


class Fanout:
    """Serves watchers (`watch`), from what the gateway accepts (`publish`) and the broker delivers (`start`)."""

    def __init__(self, database: Database, bus: Bus) -> None:
        self._history = History(database)
        self._bus = bus
        self._rings: dict[str, Ring] = {}
        self._ended = False

    async def publish(self, work_id: str, frames: list[Frame]) -> None:
        """Delivers accepted frames to the watchers here, and publishes them to the other gateways, in runs of one kind.

        Best effort: the tail check finds in SQL what is lost on the way.
        """
        if ring := self._rings.get(work_id):
            ring.extend(frames)
        start = 0
        for end in range(1, len(frames) + 1):
            if end == len(frames) or frames[end].kind != frames[start].kind:
                run = b"".join(frame.data for frame in frames[start:end])
                try:
                    await self._bus.publish(subjects.event(work_id, frames[start].kind), run)
                except BusUnavailable as error:
                    log.warning("live events of %s were not published: %s", work_id, error)
                    return
                start = end

    async def start(self) -> None:
        """Subscribes to the events that other gateways accept."""
        await self._bus.subscribe(subjects.event("*", "*"), self._received)

    def end(self) -> None:
        """Ends every watch with Unavailable: this gateway stops, and the watcher continues at another or after it."""
        self._ended = True
        for ring in self._rings.values():
            for cursor in ring.cursors:
                cursor.wake()

    async def run(self) -> None:
        """Runs the tail check until cancelled: one query a second finds events that the broker lost."""
        while True:
            await asyncio.sleep(_TAIL_CHECK_SECONDS)
            self._measure()
            if not self._rings:
                continue
            watched = list(self._rings)
            try:
                newest = await self._history.last_sequences(watched)
            except (DBAPIError, DatabaseUnavailable) as error:
                log.warning("the last events of watched work cannot be checked: %s", error)
                continue
            for work_id in watched:
                ring = self._rings.get(work_id)
                if ring is None:
                    continue
                if work_id in newest:
                    ring.advance(newest[work_id])
                else:
                    ring.end()

    def _measure(self) -> None:
        rings = self._rings.values()
        gauges.WATCHERS.set(sum(len(ring.cursors) for ring in rings))
        gauges.RING_BYTES.set(sum(ring.bytes for ring in rings))
        lags = (ring.newest - cursor.position for ring in rings for cursor in ring.cursors)
        gauges.WATCH_LAG_EVENTS.set(max(lags, default=0))

    def _received(self, subject: str, data: bytes) -> None:
        ring = self._rings.get(subject.split(".")[3])
        if ring is None:
            return
        try:
            ring.extend(frames_of_run(data))
        except DecodeError as error:
            log.warning("a run of events on %s cannot be decoded; watchers read it from SQL: %s", subject, error)

    @contextmanager
    def _attached(self, work_id: str, position: int, heartbeat_seconds: float) -> Iterator[tuple[Ring, Cursor]]:
        ring = self._rings.setdefault(work_id, Ring())
        cursor = Cursor(position, heartbeat_seconds)
        ring.cursors.add(cursor)
        try:
            yield ring, cursor
        finally:
            cursor.close()
            ring.cursors.discard(cursor)
            if not ring.cursors:
                del self._rings[work_id]

    async def watch(
        self,
        kind: Kind,
        work_id: str,
        tenant: str,
        after: int,
        kinds: Collection[str],
        min_severity: int,
        heartbeat_seconds: float,
    ) -> AsyncGenerator[bytes]:
        """Yields serialised Watch responses: history from SQL, then live events, until the terminal event. Their wire
        form is the same for every kind.

        A response without events is sent when there was nothing to send for `heartbeat_seconds`; its
        through_sequence says how far the watcher has got.
        """
        selected = EventFilter(frozenset(kinds), min_severity)
        with self._attached(work_id, after, heartbeat_seconds) as (ring, cursor):
            row = await self._history.position(work_id, tenant, kind)
            if row is None:
                raise no_such(kind, work_id)
            state, last_sequence = row
            check_within(kind, work_id, after, last_sequence)
            ring.advance(last_sequence)
            if state in TERMINAL and after == last_sequence:
                return
            while not self._ended:
                news = await ring.beyond(cursor)
                page = ring.page(cursor.position, selected) if news else None
                if news and page is None:
                    page = await self._history.page(work_id, cursor.position, selected, ring.newest)
                if page is not None:
                    cursor.position = page.through
                elif ring.gone or (news and await self._history.position(work_id, tenant, kind) is None):
                    raise NotFound(kind.reason, f"The {kind.noun} {work_id} was deleted while it was watched.")
                if page is not None and (page.ends or not page.empty):
                    yield page.response
                    if page.ends:
                        return
                elif cursor.overdue:
                    yield watch_response((), cursor.position)
                else:
                    continue
                cursor.rest()
        raise Unavailable(
            "GATEWAY_STOPS",
            "This gateway is stopping; watch again with after_sequence = the sequence of your last event.",
        )
