"""Live events for watchers: one subscription, one ring of framed bytes per watched job, watchers as cursors."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from sqlalchemy import or_
from sqlalchemy.exc import DBAPIError
from sqlmodel import col, select

from chassis.bus.event_bus import Bus, BusUnavailable, event_subject
from chassis.errors import NotFound, OutOfRange, Unavailable, Violation
from chassis.server import gauges
from gateway.sql.database import Database
from gateway.sql.database_errors import DatabaseUnavailable
from gateway.sql.tables import Job, JobEvent
from gateway.watch.frames import TERMINAL_KIND, Frame, frame_of_row, frames_of_run, watch_response
from gateway.work.lifecycle import TERMINAL

log = logging.getLogger(__name__)

_RING_BYTES = 1 << 20
_PAGE_EVENTS = 500
# A watcher that reads nothing holds one page, and gRPC a copy of it.
_PAGE_BYTES = 256 << 10
_STORED_PAGES = 32
"""Pages from SQL that are kept for whoever asks next: watchers that come together read history together."""
_TAIL_CHECK_SECONDS = 1.0
# To wake a watcher costs about 60 µs, whether for one event or for fifty: there is no next wave before the last one can
# be over, until messages are so long that more of them at once gain nothing.
_WAVE_SECONDS = 0.0025
_WAVE_SECONDS_PER_WATCHER = 0.00006
_FULL_WAVE_EVENTS = 50


def first_bytes(frames: Iterable[Frame], limit: int = 1 << 20) -> list[Frame]:
    """As many as make a message of about `limit` bytes, at least one: clients take 4 MiB at once."""
    page: list[Frame] = []
    size = 0
    for frame in frames:
        page.append(frame)
        size += len(frame.data)
        if size >= limit:
            break
    return page


def check_within(job_id: str, after_sequence: int, last_sequence: int) -> None:
    """Refuses a cursor that no event of this job has given."""
    if after_sequence > last_sequence:
        raise OutOfRange(
            "CURSOR_BEYOND_END",
            f"after_sequence is {after_sequence}, but job {job_id} has {last_sequence} events so far",
            [Violation("after_sequence", f"at most {last_sequence}")],
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a watcher wants to see. No kinds: all of them."""

    kinds: frozenset[str]
    min_severity: int

    def __contains__(self, frame: Frame) -> bool:
        return (not self.kinds or frame.kind in self.kinds) and frame.severity >= self.min_severity


@dataclass(frozen=True, slots=True)
class Page:
    """What every watcher with the same cursor and the same wishes gets."""

    response: bytes
    """A serialised WatchFineTuningJobResponse."""
    through: int
    empty: bool
    """There was nothing that is wanted."""
    ends: bool
    """It holds the event after which there are no more."""


class Cursor:
    """A watcher: how far it has got, and until when it waits for more. A new one is overdue: it is to hear at once that
    it is heard."""

    def __init__(self, position: int, patience_seconds: float) -> None:
        self.position = position
        self._patience = patience_seconds
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Future[None] | None = None
        self._due = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def overdue(self) -> bool:
        """It has waited for as long as it has patience."""
        return self._loop.time() >= self._due

    def rest(self) -> None:
        """Its patience begins anew."""
        self._due = self._loop.time() + self._patience

    async def wait(self) -> None:
        """Until it is woken, at the latest until it is overdue."""
        self._news = self._loop.create_future()
        # One timer for many waits: to set one and take it back at every wait costs more than the wait.
        if self._timer is None:
            self._timer = self._loop.call_at(self._due, self._expire)
        try:
            await self._news
        finally:
            self._news = None

    def wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        self._timer = None
        if self.overdue:
            self.wake()
        elif self._news is not None:
            self._timer = self._loop.call_at(self._due, self._expire)


class Ring:
    """The newest frames of one job, contiguous. Never holds what SQL lacks."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._frames: list[Frame] = []
        self._pages: dict[tuple[int, Wanted], Page] = {}
        self.bytes = 0
        self.newest = 0
        """The greatest sequence known to be in SQL, whether held here or not."""
        self.gone = False
        """The job was deleted."""
        self.cursors: set[Cursor] = set()
        self._wave: asyncio.TimerHandle | None = None
        self._last_wave = 0.0
        self._woken_for = 0

    def extend(self, frames: list[Frame]) -> None:
        """Appends what follows on, trims what it has, starts anew after a hole."""
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
        """SQL holds events up to `newest`."""
        if newest > self.newest:
            self.newest = newest
            self._wake_soon()

    def end(self) -> None:
        """The job was deleted: nothing comes any more."""
        self.gone = True
        self._wake_soon()

    def page(self, cursor: int, wanted: Wanted) -> Page | None:
        """What comes after `cursor`, or None when SQL must be asked."""
        held = self._frames
        if not held or cursor + 1 < held[0].sequence or cursor >= held[-1].sequence:
            return None
        found = self._pages.get((cursor, wanted))
        if found is None:
            start = cursor + 1 - held[0].sequence
            frames = first_bytes(held[start : start + _PAGE_EVENTS], _PAGE_BYTES)
            found = self._pages[cursor, wanted] = _page(frames, wanted, frames[-1].sequence)
        return found

    async def beyond(self, cursor: Cursor) -> bool:
        """Waits until there is something beyond `cursor`; False when it is overdue without."""
        if not self._news_for(cursor):
            await cursor.wait()
        # A wave may be about what this watcher has been handed before it came.
        return self._news_for(cursor)

    def _news_for(self, cursor: Cursor) -> bool:
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


def _page(frames: Iterable[Frame], wanted: Wanted, through: int) -> Page:
    frames = list(frames)
    chosen = [frame for frame in frames if frame in wanted]
    return Page(watch_response(chosen, through), through, not chosen, any(frame.terminal for frame in frames))


class Fanout:
    """Serves watchers. `publish` and `run` are the gateway's side of it."""

    def __init__(self, database: Database, bus: Bus) -> None:
        self._database = database
        self._bus = bus
        self._rings: dict[str, Ring] = {}
        self._ended = False
        self._stored_pages: OrderedDict[tuple[str, int, Wanted], asyncio.Task[Page | None]] = OrderedDict()

    async def publish(self, job_id: str, frames: list[Frame]) -> None:
        """Hands accepted frames to the watchers here, and sends them to the other gateways, in runs of one kind.

        Best effort: what gets lost on the way is found in SQL by the tail check.
        """
        if ring := self._rings.get(job_id):
            ring.extend(frames)
        start = 0
        for end in range(1, len(frames) + 1):
            if end == len(frames) or frames[end].kind != frames[start].kind:
                run = b"".join(frame.data for frame in frames[start:end])
                try:
                    await self._bus.publish(event_subject(job_id, frames[start].kind), run)
                except BusUnavailable as error:
                    log.warning("live events of job %s were not published: %s", job_id, error)
                    return
                start = end

    async def start(self) -> None:
        await self._bus.subscribe(event_subject("*", "*"), self._received)

    def end(self) -> None:
        """Sends every watcher away: the gateway stops, and another one, or this one started again, has all there is."""
        self._ended = True
        for ring in self._rings.values():
            for cursor in ring.cursors:
                cursor.wake()

    async def run(self) -> None:
        """The tail check, until cancelled: one query a second for all watched jobs."""
        while True:
            await asyncio.sleep(_TAIL_CHECK_SECONDS)
            self._measure()
            if not self._rings:
                continue
            watched = list(self._rings)
            try:
                async with self._database.read() as session:
                    query = select(Job.id, Job.last_sequence).where(col(Job.id).in_(watched))
                    newest = dict((await session.exec(query)).all())
            except (DBAPIError, DatabaseUnavailable) as error:
                log.warning("the tail of watched jobs can't be checked: %s", error)
                continue
            for job_id in watched:
                ring = self._rings.get(job_id)
                if ring is None:
                    continue
                if job_id in newest:
                    ring.advance(newest[job_id])
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
            log.warning("a run on %s can't be decoded and is left to SQL: %s", subject, error)

    @contextmanager
    def _attached(self, job_id: str, position: int, patience_seconds: float) -> Iterator[tuple[Ring, Cursor]]:
        ring = self._rings.setdefault(job_id, Ring())
        cursor = Cursor(position, patience_seconds)
        ring.cursors.add(cursor)
        try:
            yield ring, cursor
        finally:
            cursor.close()
            ring.cursors.discard(cursor)
            if not ring.cursors:
                del self._rings[job_id]

    async def watch(
        self,
        job_id: str,
        tenant: str,
        after: int,
        kinds: Collection[str],
        min_severity: int,
        heartbeat_seconds: float,
    ) -> AsyncGenerator[bytes]:
        """Serialised WatchFineTuningJobResponses: the past from SQL, then live, until the terminal event. One without
        events comes when there was nothing to send for `heartbeat_seconds`; it says how far the cursor has got."""
        wanted = Wanted(frozenset(kinds), min_severity)
        with self._attached(job_id, after, heartbeat_seconds) as (ring, cursor):
            row = await self._position(job_id)
            if row is None or row[0] != tenant:
                raise NotFound("JOB_NOT_FOUND", f"there is no fine-tuning job {job_id!r}")
            _, state, last_sequence = row
            check_within(job_id, after, last_sequence)
            ring.advance(last_sequence)
            if state in TERMINAL and after == last_sequence:
                return
            while not self._ended:
                news = await ring.beyond(cursor)
                page = ring.page(cursor.position, wanted) if news else None
                if news and page is None:
                    page = await self._stored(job_id, cursor.position, wanted, ring)
                if page is not None:
                    cursor.position = page.through
                elif ring.gone or (news and await self._position(job_id) is None):
                    raise NotFound("JOB_NOT_FOUND", f"job {job_id} was deleted while it was watched")
                if page is not None and (page.ends or not page.empty):
                    yield page.response
                    if page.ends:
                        return
                elif cursor.overdue:
                    yield watch_response((), cursor.position)
                else:
                    continue
                cursor.rest()
        raise Unavailable("GATEWAY_STOPS", "this gateway stops; watch on from your cursor")

    async def _position(self, job_id: str) -> tuple[str, str, int] | None:
        async with self._database.read() as session:
            query = select(Job.tenant, Job.state, Job.last_sequence).where(Job.id == job_id)
            return (await session.exec(query)).one_or_none()

    async def _stored(self, job_id: str, cursor: int, wanted: Wanted, ring: Ring) -> Page | None:
        """A page from SQL, read once for all who ask: what is history does not change. None when there is nothing."""
        key = (job_id, cursor, wanted)
        reading = self._stored_pages.get(key)
        if reading is None:
            reading = self._stored_pages[key] = asyncio.create_task(self._read(job_id, cursor, wanted, ring.newest))
            if len(self._stored_pages) > _STORED_PAGES:
                self._stored_pages.popitem(last=False)
        self._stored_pages.move_to_end(key)
        try:
            # Others may wait for it when this watcher is cancelled.
            page = await asyncio.shield(reading)
        except BaseException:
            if reading.done():
                self._stored_pages.pop(key, None)
            task = asyncio.current_task()
            if not reading.cancelled() or (task and task.cancelling()):
                raise
            # The reading was cancelled, this watcher was not: a stream must not end with it.
            page = await self._read(job_id, cursor, wanted, ring.newest)
        if page is None or page.through <= cursor:
            # Nothing was there yet. Kept, it would be the answer for ever, to a watcher that asks without a pause.
            self._stored_pages.pop(key, None)
        return page

    async def _read(self, job_id: str, cursor: int, wanted: Wanted, newest: int) -> Page | None:
        events = select(JobEvent.sequence, JobEvent.kind, JobEvent.severity, JobEvent.event).where(
            JobEvent.job_id == job_id, JobEvent.sequence > cursor, JobEvent.sequence <= newest
        )
        # The event that ends the stream is looked for whatever is wanted.
        if wanted.kinds:
            events = events.where(col(JobEvent.kind).in_([*wanted.kinds, TERMINAL_KIND]))
        if wanted.min_severity:
            loud = col(JobEvent.severity) >= wanted.min_severity
            events = events.where(or_(loud, col(JobEvent.kind) == TERMINAL_KIND))
        async with self._database.read() as session:
            rows = (await session.exec(events.order_by(col(JobEvent.sequence)).limit(_PAGE_EVENTS))).all()
            if not rows and (await session.exec(select(Job.id).where(Job.id == job_id))).one_or_none() is None:
                return None
        frames = first_bytes((frame_of_row(*row) for row in rows), _PAGE_BYTES)
        complete = len(frames) == len(rows) < _PAGE_EVENTS
        return _page(frames, wanted, newest if complete else frames[-1].sequence)
