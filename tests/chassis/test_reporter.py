"""Events are reported immediately when the worker is idle, in batches when it is busy, one report at a time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from chassis.attempt.reporter import Reporter
from chassis.attempt.spool import ClaimRecord, Spool
from chassis.attempt.time_limits import TimeLimits
from chassis.bus import subjects
from chassis.bus.event_bus import Bus
from chassis.events import event_of
from chassis.server import gauges
from finetuneflow.v1 import event_pb2, work_pb2


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    record = ClaimRecord(job_id="j", tenant="t", stage=2, attempt=1, claim_id="c" * 32, workdir=tmp_path / "work")
    return Spool(tmp_path / "spool", record)


class FakeReportHandler:
    """Answers reports through a function that a test may replace."""

    def __init__(self) -> None:
        self.reports: list[work_pb2.ReportRequest] = []
        self.answer: Callable[[work_pb2.ReportRequest], Awaitable[int]] = self._everything
        self._news = asyncio.Condition()

    async def handle(self, _subject: str, data: bytes) -> bytes:
        request = work_pb2.ReportRequest.FromString(data)
        async with self._news:
            self.reports.append(request)
            self._news.notify_all()
        accepted = await self.answer(request)
        return work_pb2.ReportResponse(next_ordinal=accepted, directive="DIRECTIVE_RUN").SerializeToString()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(condition)

    @property
    def ordinals(self) -> list[int]:
        return [event_pb2.Event.FromString(event).ordinal for report in self.reports for event in report.events]

    async def _everything(self, request: work_pb2.ReportRequest) -> int:
        return request.first_ordinal + len(request.events)


@contextlib.asynccontextmanager
async def reporting(
    bus: Bus, spool: Spool, handler: FakeReportHandler, heartbeat_seconds: float = TimeLimits.heartbeat_seconds
) -> AsyncIterator[Reporter]:
    handlers = await bus.serve(subjects.report("*"), "gateways", handler.handle)
    reporter = Reporter(bus, spool, lambda _: None, heartbeat_seconds)
    running = asyncio.create_task(reporter.run())
    try:
        yield reporter
    finally:
        running.cancel()
        await asyncio.wait({running})
        await handlers.stop()


def log(step: int) -> event_pb2.Event:
    return event_of(event_pb2.Log(step=step))


async def test_event_after_idle_time_is_reported_before_next_heartbeat(bus: Bus, spool: Spool) -> None:
    """Watchers of a slow training see each step when it happens."""
    handler = FakeReportHandler()
    async with reporting(bus, spool, handler, heartbeat_seconds=3600.0) as reporter:
        await handler.wait_until(lambda: len(handler.reports) == 1)
        for step in range(5):
            reporter.append(log(step))
            await handler.wait_until(lambda wanted=step: handler.ordinals[-1:] == [wanted])
    assert handler.ordinals == list(range(5))


async def test_events_during_a_report_are_batched_into_the_next(bus: Bus, spool: Spool) -> None:
    """Thousands of events a second do not become thousands of transactions."""
    handler, gate = FakeReportHandler(), asyncio.Event()

    async def answer_when_released(request: work_pb2.ReportRequest) -> int:
        await gate.wait()
        return request.first_ordinal + len(request.events)

    handler.answer = answer_when_released
    async with reporting(bus, spool, handler) as reporter:
        await handler.wait_until(lambda: len(handler.reports) == 1)
        for step in range(300):
            reporter.append(log(step))
        assert len(handler.reports) == 1, "two reports of one claim were in flight"
        gate.set()
        await handler.wait_until(lambda: len(handler.ordinals) == 300)
    assert [len(report.events) for report in handler.reports if report.events] == [300]
    assert handler.ordinals == list(range(300))


async def test_events_lost_by_gateway_are_reported_again(bus: Bus, spool: Spool) -> None:
    """After a restore of the database, the worker continues at the gateway's ordinal."""
    handler = FakeReportHandler()
    lost = [True]

    async def answer_with_lost_events(request: work_pb2.ReportRequest) -> int:
        accepted = request.first_ordinal + len(request.events)
        if accepted == 10 and lost:
            lost.clear()
            return 4
        return accepted

    handler.answer = answer_with_lost_events
    async with reporting(bus, spool, handler) as reporter:
        for step in range(10):
            reporter.append(log(step))
        await handler.wait_until(lambda: not lost and handler.ordinals[-1:] == [9] and len(handler.ordinals) > 10)
    assert handler.ordinals[-6:] == list(range(4, 10))


async def test_spool_depth_gauge_rises_and_returns_to_zero(bus: Bus, spool: Spool) -> None:
    """Operators see that events accumulate while gateways are down."""
    handler, gate = FakeReportHandler(), asyncio.Event()

    async def answer_when_released(request: work_pb2.ReportRequest) -> int:
        await gate.wait()
        return request.first_ordinal + len(request.events)

    handler.answer = answer_when_released
    accepted = sum(bucket.get() for bucket in gauges.ACCEPTED_SECONDS._buckets)
    async with reporting(bus, spool, handler) as reporter:
        for step in range(7):
            reporter.append(log(step))
        await handler.wait_until(lambda: len(handler.ordinals) == 7)
        assert gauges.SPOOLED_EVENTS._value.get() == 7
        gate.set()
        reports = len(handler.reports)
        reporter.append(log(7))
        await handler.wait_until(lambda: len(handler.reports) > reports)
        await handler.wait_until(lambda: reporter.waiting_events == 0)
    assert gauges.SPOOLED_EVENTS._value.get() == 0
    assert sum(bucket.get() for bucket in gauges.ACCEPTED_SECONDS._buckets) >= accepted + 7
