"""Reports one claim's events to a gateway until every one is accepted, and hears what the gateway wants."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

from chassis.attempt.spool import Spool
from chassis.attempt.time_limits import TimeLimits
from chassis.bus.event_bus import Bus, BusUnavailable, report_subject
from chassis.failpoints import failpoint
from chassis.server import gauges
from finetuneflow.v1 import event_pb2, work_pb2

_log = logging.getLogger(__name__)

MAX_REPORT_BYTES: Final = 256 * 1024
_EVENTS_BYTES = MAX_REPORT_BYTES - 8 * 1024
"""The rest is the envelope."""
_GAP_SECONDS = 0.015
"""From one report to the next: to decide on fifty events costs a gateway little more than to decide on one. The first
event after a quiet time does not wait."""
_ANSWER_SECONDS = 2.0
_BACKOFF_SECONDS = (0.25, 0.5, 1.0, 2.0)


class Reporter:
    """One report in flight, an empty one every 2 s, the same again until it is answered."""

    def __init__(
        self,
        bus: Bus,
        spool: Spool,
        on_directive: Callable[[work_pb2.Directive], None],
        heartbeat_seconds: float = TimeLimits.heartbeat_seconds,
    ) -> None:
        self._bus = bus
        self._spool = spool
        self._on_directive = on_directive
        self._heartbeat_seconds = heartbeat_seconds
        self._wake = asyncio.Event()
        self._next = spool.first
        self._sent = -_GAP_SECONDS
        self._kept: collections.deque[float] = collections.deque()
        """When each event was kept, from `_timed` on; what an earlier process kept has no such time."""
        self._timed = spool.end
        self._shown = 0
        self.stopped = False
        """True once a gateway has said STOP."""

    @property
    def waiting_events(self) -> int:
        """Events that are not accepted yet."""
        return self._spool.end - self._next

    def append(self, event: event_pb2.Event) -> None:
        """Keeps an event and has it reported soon."""
        self._spool.append(event)
        self._kept.append(time.monotonic())
        self._wake.set()

    def nudge(self) -> None:
        """Has it report now, though there may be nothing to report: the answer says what is wanted."""
        self._wake.set()

    async def run(self) -> None:
        """Until the event that ends the attempt is accepted, or until STOP."""
        try:
            await self._run()
        finally:
            gauges.SPOOLED_EVENTS.dec(self._shown)
            self._shown = 0

    async def _run(self) -> None:
        failures = 0
        while not self.stopped and not (self._spool.sealed and self._next >= self._spool.end):
            try:
                # One that was stopped must not get it again: the lease would end before the broker drops it.
                response = await self._report(everyone=failures > 0)
            except BusUnavailable as error:
                if failures == 0:
                    _log.warning("no gateway answers; events wait on disk: %s", error)
                await asyncio.sleep(_BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)])
                failures += 1
                continue
            if failures:
                _log.info("a gateway answers again")
            failures = 0
            failpoint("report.answered")
            self._next = max(response.next_ordinal, self._spool.first)
            self._spool.forget(response.next_ordinal)
            failpoint("report.forgotten")
            self._measure()
            if response.directive == work_pb2.DIRECTIVE_STOP:
                self.stopped = True
            self._on_directive(response.directive)
            if not self.stopped:
                await self._rest()

    async def _rest(self) -> None:
        """Until there is something to report, at the latest until the next heartbeat."""
        if self._next >= self._spool.end and not self._spool.sealed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._heartbeat_seconds)
        gap = self._sent + _GAP_SECONDS - time.monotonic()
        if gap > 0 and not self._spool.sealed:
            await asyncio.sleep(gap)

    async def _report(self, *, everyone: bool) -> work_pb2.ReportResponse:
        self._wake.clear()
        self._sent = time.monotonic()
        self._show()
        record = self._spool.record
        report = work_pb2.ReportRequest(
            job_id=record.job_id,
            claim_id=record.claim_id,
            first_ordinal=self._next,
            events=self._spool.read(self._next, _EVENTS_BYTES),
        )
        subject = report_subject(record.job_id)
        return await self._bus.request(subject, report, work_pb2.ReportResponse, _ANSWER_SECONDS, everyone=everyone)

    def _measure(self) -> None:
        now = time.monotonic()
        while self._timed < self._next and self._kept:
            gauges.ACCEPTED_SECONDS.observe(now - self._kept.popleft())
            self._timed += 1
        self._show()

    def _show(self) -> None:
        gauges.SPOOLED_EVENTS.inc(self.waiting_events - self._shown)
        self._shown = self.waiting_events
