"""Reports the events of one claim to a gateway until all are accepted, and receives directives."""

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
from chassis.bus import subjects
from chassis.bus.event_bus import Bus, BusUnavailable
from chassis.failpoints import failpoint
from chassis.server import gauges
from finetuneflow.v1 import event_pb2, work_pb2

_log = logging.getLogger(__name__)

MAX_REPORT_BYTES: Final = 256 * 1024
_EVENTS_BYTES = MAX_REPORT_BYTES - 8 * 1024
"""Limit for the events of a report; the rest is for its other fields."""
_GAP_SECONDS = 0.015
"""Shortest time between two reports: fifty events in one cost a gateway little more than one event. The first event
after a quiet time does not wait."""
_ANSWER_SECONDS = 2.0
_BACKOFF_SECONDS = (0.25, 0.5, 1.0, 2.0)


class Reporter:
    """Sends one report at a time, an empty one every `heartbeat_seconds`, and repeats each until it is answered."""

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
        """Times at which events were appended, from ordinal `_timed` on; events of an earlier process have none."""
        self._timed = spool.end
        self._shown = 0
        self.stopped = False
        """True once a gateway has answered STOP."""

    @property
    def waiting_events(self) -> int:
        """Number of events that are not accepted yet."""
        return self._spool.end - self._next

    def append(self, event: event_pb2.Event) -> None:
        """Stores an event in the spool and reports it soon."""
        self._spool.append(event)
        self._kept.append(time.monotonic())
        self._wake.set()

    def nudge(self) -> None:
        """Sends a report now, an empty one if there is nothing to report: the answer carries the directive."""
        self._wake.set()

    async def run(self) -> None:
        """Reports until the event that ends the attempt is accepted, or until STOP."""
        try:
            await self._run()
        finally:
            gauges.SPOOLED_EVENTS.dec(self._shown)
            self._shown = 0

    async def _run(self) -> None:
        failures = 0
        while not self.stopped and not (self._spool.sealed and self._next >= self._spool.end):
            try:
                # A stopped gateway must not get it again: the lease would end before the broker drops that gateway.
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
            self._observe_latency()
            if response.directive == work_pb2.DIRECTIVE_STOP:
                self.stopped = True
            self._on_directive(response.directive)
            if not self.stopped:
                await self._wait_for_events()

    async def _wait_for_events(self) -> None:
        """Waits for an event to report, at most until the next heartbeat."""
        if self._next >= self._spool.end and not self._spool.sealed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_seconds):
                    await self._wake.wait()
        gap = self._sent + _GAP_SECONDS - time.monotonic()
        if gap > 0 and not self._spool.sealed:
            await asyncio.sleep(gap)

    async def _report(self, *, everyone: bool) -> work_pb2.ReportResponse:
        self._wake.clear()
        self._sent = time.monotonic()
        self._update_gauge()
        record = self._spool.record
        report = work_pb2.ReportRequest(
            job_id=record.job_id,
            claim_id=record.claim_id,
            first_ordinal=self._next,
            events=self._spool.read(self._next, _EVENTS_BYTES),
        )
        subject = subjects.report(record.job_id)
        return await self._bus.request(subject, report, work_pb2.ReportResponse, _ANSWER_SECONDS, everyone=everyone)

    def _observe_latency(self) -> None:
        now = time.monotonic()
        while self._timed < self._next and self._kept:
            gauges.ACCEPTED_SECONDS.observe(now - self._kept.popleft())
            self._timed += 1
        self._update_gauge()

    def _update_gauge(self) -> None:
        gauges.SPOOLED_EVENTS.inc(self.waiting_events - self._shown)
        self._shown = self.waiting_events
