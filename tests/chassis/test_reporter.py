"""Events leave a worker at once when it is quiet, together when it is busy, and one report at a time."""

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


class Desk:
    """Answers reports, one when it is let to."""

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

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(condition)

    @property
    def ordinals(self) -> list[int]:
        return [event_pb2.Event.FromString(event).ordinal for report in self.reports for event in report.events]

    async def _everything(self, request: work_pb2.ReportRequest) -> int:
        return request.first_ordinal + len(request.events)


@contextlib.asynccontextmanager
async def reporting(
    bus: Bus, spool: Spool, desk: Desk, heartbeat_seconds: float = TimeLimits.heartbeat_seconds
) -> AsyncIterator[Reporter]:
    handlers = await bus.serve(subjects.report("*"), "gateways", desk.handle)
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


async def test_an_event_after_a_quiet_time_does_not_wait_for_the_next_heartbeat(bus: Bus, spool: Spool) -> None:
    """Somebody who watches a slow training sees each step when it happens."""
    desk = Desk()
    async with reporting(bus, spool, desk, heartbeat_seconds=3600.0) as reporter:
        await desk.until(lambda: len(desk.reports) == 1)
        for step in range(5):
            reporter.append(log(step))
            await desk.until(lambda wanted=step: desk.ordinals[-1:] == [wanted])
    assert desk.ordinals == list(range(5))


async def test_what_comes_while_a_report_is_in_flight_goes_together_in_the_next(bus: Bus, spool: Spool) -> None:
    """Thousands of events a second do not become thousands of transactions."""
    desk, gate = Desk(), asyncio.Event()

    async def held(request: work_pb2.ReportRequest) -> int:
        await gate.wait()
        return request.first_ordinal + len(request.events)

    desk.answer = held
    async with reporting(bus, spool, desk) as reporter:
        await desk.until(lambda: len(desk.reports) == 1)
        for step in range(300):
            reporter.append(log(step))
        assert len(desk.reports) == 1, "two reports of one claim were under way"
        gate.set()
        await desk.until(lambda: len(desk.ordinals) == 300)
    assert [len(report.events) for report in desk.reports if report.events] == [300]
    assert desk.ordinals == list(range(300))


async def test_a_gateway_that_lost_events_gets_them_again(bus: Bus, spool: Spool) -> None:
    """A database restored from a copy: the worker goes back to where that one stands."""
    desk = Desk()
    lost = [True]

    async def forgetful(request: work_pb2.ReportRequest) -> int:
        accepted = request.first_ordinal + len(request.events)
        if accepted == 10 and lost:
            lost.clear()
            return 4
        return accepted

    desk.answer = forgetful
    async with reporting(bus, spool, desk) as reporter:
        for step in range(10):
            reporter.append(log(step))
        await desk.until(lambda: not lost and desk.ordinals[-1:] == [9] and len(desk.ordinals) > 10)
    assert desk.ordinals[-6:] == list(range(4, 10))


async def test_the_spool_depth_is_shown_and_goes_back_to_nothing(bus: Bus, spool: Spool) -> None:
    """An operator sees that events pile up in front of gateways that are away."""
    desk, gate = Desk(), asyncio.Event()

    async def held(request: work_pb2.ReportRequest) -> int:
        await gate.wait()
        return request.first_ordinal + len(request.events)

    desk.answer = held
    accepted = sum(bucket.get() for bucket in gauges.ACCEPTED_SECONDS._buckets)
    async with reporting(bus, spool, desk) as reporter:
        for step in range(7):
            reporter.append(log(step))
        await desk.until(lambda: len(desk.ordinals) == 7)
        assert gauges.SPOOLED_EVENTS._value.get() == 7
        gate.set()
        reports = len(desk.reports)
        reporter.append(log(7))
        await desk.until(lambda: len(desk.reports) > reports)
        await desk.until(lambda: reporter.waiting_events == 0)
    assert gauges.SPOOLED_EVENTS._value.get() == 0
    assert sum(bucket.get() for bucket in gauges.ACCEPTED_SECONDS._buckets) >= accepted + 7
