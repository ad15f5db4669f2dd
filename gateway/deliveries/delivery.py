"""One delivery: sends the events of a job to one service, in order, from its cursor in SQL."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError
from sqlmodel import col, delete, select
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.bus.connection import heeding_cancellation
from chassis.failpoints import failpoint
from finetuneflow.v1.event_pb2 import Event
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from gateway.deliveries.credential_mask import without_credentials
from gateway.deliveries.sinks import DeliveryFailed, FollowedJob, Sink, TrackerRun
from gateway.sql.database import Database
from gateway.sql.database_errors import DatabaseUnavailable
from gateway.sql.tables import Delivery, DeliveryAttemptRow, SavedArtifact, Work, WorkEvent, now
from gateway.work.lifecycle import TERMINAL

_log = logging.getLogger(__name__)

MakeSink = Callable[[Delivery, FollowedJob], Awaitable[Sink]]

KEPT_ATTEMPTS = 100
"""Tries that the log of a delivery keeps."""
_PAGE_EVENTS = 50
"""Events that are in memory at once; each has at most 64 KiB."""
_DATABASE_SECONDS = 5.0
"""Pause after a failure of the database."""
_MAX_ERROR = 500
_MAX_SAID = 200
_MAX_TRACE = 16_000


class _Lost(Exception):
    """The delivery was deleted, or another process has taken it."""


@dataclass(frozen=True)
class RetrySchedule:
    """When a failed try is repeated."""

    first_seconds: float = 5.0
    most_seconds: float = 3600.0
    attempts: int = 20
    """Failures in a row after which the delivery is given up."""

    def delay(self, failures: int) -> float:
        """Returns the seconds to wait after that many failures in a row."""
        return min(self.first_seconds * 2.0 ** min(failures - 1, 40), self.most_seconds)


@dataclass
class _Try:
    """A try that is under way."""

    began: float
    time: int
    first_sequence: int = 0
    last_sequence: int = 0

    @classmethod
    def of(cls, events: Sequence[Event] = ()) -> _Try:
        made = cls(time.monotonic(), now())
        if events:
            made.first_sequence, made.last_sequence = events[0].sequence, events[-1].sequence
        return made


@dataclass(frozen=True)
class _Page:
    events: Sequence[Event]
    through: int
    """The last sequence that the page covers."""
    state: str
    """The job's terminal state if nothing follows the page."""


class DeliveryLoop:
    """Delivers until the job's end, until it is given up, or until the delivery is lost."""

    def __init__(self, database: Database, row: Delivery, make_sink: MakeSink, schedule: RetrySchedule) -> None:
        """`row` is a delivery that its holder has just taken."""
        self._database, self._make_sink, self._schedule = database, make_sink, schedule
        self._row = row
        self._position, self._failures = row.sequence, row.failures
        self._try = _Try.of()
        self._credentials: Sequence[str] = ()
        """Those of the service; no text that is stored or logged has a part of them."""
        self._news = asyncio.Event()
        self.work_id = row.work_id

    def wake(self) -> None:
        """Tells that the job may have new events."""
        self._news.set()

    async def run(self) -> None:
        """Returns when there is nothing more to deliver here."""
        while True:
            self._try = _Try.of()
            try:
                # A cancelled statement may end in an error of the database instead.
                with heeding_cancellation():
                    async with self._opened() as sink:
                        await self._deliver(sink)
                return
            except _Lost:
                return
            except (DBAPIError, DatabaseUnavailable) as error:
                _log.warning("the delivery %s waits for the database: %s", self._row.id, error)
                await asyncio.sleep(_DATABASE_SECONDS)
                continue
            except DeliveryFailed as error:
                failure = error
            except Exception:  # noqa: BLE001 - one service must not end the deliveries to all others
                trace = without_credentials(traceback.format_exc(), self._credentials, _MAX_TRACE)
                _log.error("the delivery %s failed unexpectedly: %s", self._row.id, trace)
                failure = DeliveryFailed("internal error; the log of the delivery process has more")
            with heeding_cancellation():
                again = await self._note(failure)
            if not again:
                return
            await asyncio.sleep(self._schedule.delay(self._failures))

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[Sink]:
        sink = await self._make_sink(self._row, await self._job())
        self._credentials = sink.credentials
        try:
            run = await sink.open()
            shown = [without_credentials(text, self._credentials, len(text)) for text in (run.name, run.url)]
            run = TrackerRun(*shown)
            if run != TrackerRun(self._row.run_name, self._row.run_url):
                async with self._held() as (_, row):
                    row.run_name, row.run_url = run.name, run.url
            yield sink
        finally:
            await sink.close()

    async def _deliver(self, sink: Sink) -> None:
        if sink.from_start:
            self._position = 0
        while True:
            self._news.clear()
            page = await self._page(sink)
            for start in range(0, len(page.events), sink.batch):
                events = page.events[start : start + sink.batch]
                self._try = _Try.of(events)
                status = await sink.write(events)
                failpoint("delivery.sent")
                await self._advance(events[-1].sequence, status)
            self._position = page.through
            if page.state:
                self._try = _Try.of()
                await self._end(await sink.finish(page.state))
                return
            if not page.events:
                await self._idle(sink)

    async def _idle(self, sink: Sink) -> None:
        """Waits for new events, or until the service is to hear that there are none."""
        try:
            async with asyncio.timeout(sink.idle_seconds):
                await self._news.wait()
        except TimeoutError:
            self._try = _Try.of()
            status = await sink.write(())
            if self._failures:
                await self._advance(self._position, status)

    async def _job(self) -> FollowedJob:
        async with self._database.read() as session:
            work = (await session.exec(select(Work).where(Work.id == self.work_id))).one_or_none()
            held = select(Delivery.holder).where(Delivery.id == self._row.id)
            holder = (await session.exec(held)).one_or_none()
        if work is None or holder != self._row.holder:
            raise _Lost
        spec = FineTuningJobSpec.FromString(work.merged_spec or work.spec)
        return FollowedJob(
            integration_id=self._row.id,
            job_id=work.id,
            tenant=work.tenant,
            display_name=spec.display_name or work.id,
            create_time=work.create_time,
            labels=dict(work.labels),
            spec=spec,
        )

    async def _page(self, sink: Sink) -> _Page:
        async with self._database.read() as session:
            found = select(Work.state, Work.last_sequence).where(Work.id == self.work_id)
            row = (await session.exec(found)).one_or_none()
            if row is None:
                raise _Lost
            query = select(WorkEvent.event).where(
                WorkEvent.work_id == self.work_id, WorkEvent.sequence > self._position
            )
            if sink.kinds:
                query = query.where(col(WorkEvent.kind).in_(sink.kinds))
            rows = (await session.exec(query.order_by(col(WorkEvent.sequence)).limit(_PAGE_EVENTS))).all()
        events = [Event.FromString(event) for event in rows]
        if len(events) == _PAGE_EVENTS:
            return _Page(events, events[-1].sequence, "")
        state, last = row
        return _Page(events, last, state if state in TERMINAL else "")

    async def _advance(self, sequence: int, http_status: int) -> None:
        async with self._held() as (session, row):
            row.sequence = max(row.sequence, sequence)
            row.state, row.failures, row.error = "INTEGRATION_STATE_ACTIVE", 0, ""
            await self._log_try(session, row, http_status)
        self._position, self._failures = sequence, 0

    async def _end(self, artifacts: Sequence[SavedArtifact]) -> None:
        async with self._held() as (session, row):
            row.sequence = max(row.sequence, self._position)
            row.state, row.failures, row.error = "INTEGRATION_STATE_DONE", 0, ""
            row.end_time, row.holder = now(), ""
            session.add_all(artifacts)

    async def _note(self, failure: DeliveryFailed) -> bool:
        """Records a failure. Returns True if there is to be another try."""
        self._failures += 1
        over = failure.final or self._failures >= self._schedule.attempts
        said = without_credentials(failure.said, self._credentials, _MAX_SAID)
        error = without_credentials(f"{failure}{said}".rstrip(" :;"), self._credentials, _MAX_ERROR)
        try:
            async with self._held() as (session, row):
                row.failures, row.error = self._failures, error
                row.state = "INTEGRATION_STATE_FAILED" if over else "INTEGRATION_STATE_RETRYING"
                if over:
                    row.end_time, row.holder = now(), ""
                await self._log_try(session, row, failure.http_status, error)
        except _Lost:
            return False
        except (DBAPIError, DatabaseUnavailable) as unavailable:
            _log.warning("a failure of the delivery %s is not recorded: %s", self._row.id, unavailable)
            return True
        _log.info("delivery %s: %s", self._row.id, error, extra={"job_id": self.work_id})
        return not over

    @contextlib.asynccontextmanager
    async def _held(self) -> AsyncIterator[tuple[AsyncSession, Delivery]]:
        """Locks the row for a change. Raises _Lost if this process holds it no more."""
        async with self._database.write() as session:
            query = select(Delivery).where(Delivery.id == self._row.id).with_for_update()
            row = (await session.exec(query)).one_or_none()
            if row is None or row.holder != self._row.holder:
                raise _Lost
            yield session, row
            row.update_time = now()
            session.add(row)

    async def _log_try(self, session: AsyncSession, row: Delivery, http_status: int, error: str = "") -> None:
        row.attempts += 1
        session.add(
            DeliveryAttemptRow(
                delivery_id=row.id,
                number=row.attempts,
                first_sequence=self._try.first_sequence,
                last_sequence=self._try.last_sequence,
                time=self._try.time,
                duration_seconds=time.monotonic() - self._try.began,
                http_status=http_status,
                error=error,
            )
        )
        old = delete(DeliveryAttemptRow).where(
            col(DeliveryAttemptRow.delivery_id) == row.id,
            col(DeliveryAttemptRow.number) <= row.attempts - KEPT_ATTEMPTS,
        )
        await session.exec(old)
