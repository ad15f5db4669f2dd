"""Decisions: one SQL transaction that first locks the job row, then tells the world.

What a decision appends gets its sequence inside the transaction. Publishing comes after COMMIT and may fail: watchers
notice a lost tail by asking SQL, and READY attempts are dispatched again.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from google.protobuf.message import Message
from sqlmodel import col, insert, select
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import NotFound
from chassis.events import event_of
from chassis.failpoints import failpoint
from finetuneflow.v1.event_pb2 import Event, Severity
from finetuneflow.v1.fine_tuning_job_pb2 import Stage
from gateway.database import Database
from gateway.frames import Frame, frame_of, with_sequence
from gateway.tables import Attempt, Job, JobEvent, Metric, now

log = logging.getLogger(__name__)

GATEWAY_SOURCE = "gateway"


@dataclass
class Decision:
    """A locked job, its open attempt, and what the decision adds."""

    session: AsyncSession
    job: Job
    attempt: Attempt | None
    """The one attempt that is not ENDED."""
    frames: list[Frame] = field(default_factory=list)
    ready: Attempt | None = None
    """An attempt to dispatch after COMMIT."""
    metrics: list[Metric] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    """Paths in the artifact store, tenant in front, that nothing names any more after COMMIT."""
    _events: list[dict[str, object]] = field(default_factory=list)

    def append(self, payload: Message, severity: Severity | None = None) -> None:
        """An event of the gateway's own."""
        event = event_of(payload, severity)
        event.job_id, event.attempt = self.job.id, self.job.attempt
        event.stage = Stage.Value(self.job.stage)  # type: ignore[assignment]
        event.source = GATEWAY_SOURCE
        self.accept(event.SerializeToString(), event)

    def accept(self, event: bytes, parsed: Event) -> int:
        """Gives a serialised event its sequence and returns it."""
        self.job.last_sequence += 1
        self.job.update_time = now()
        event = with_sequence(event, self.job.last_sequence)
        frame = frame_of(event, parsed, self.job.last_sequence)
        self.frames.append(frame)
        self._events.append(
            {
                "job_id": self.job.id,
                "sequence": frame.sequence,
                "tenant": self.job.tenant,
                "kind": frame.kind,
                "severity": frame.severity,
                "event": event,
            }
        )
        return frame.sequence

    async def flush(self) -> None:
        """Event and metric rows go in as Core inserts: five times the speed of the ORM's."""
        self.session.add(self.job)
        await self.session.flush()
        if self.ready is not None:
            # Only now: one flush would insert it before the older attempt is ENDED, which the unique index refuses.
            self.session.add(self.ready)
            await self.session.flush()
        if self._events:
            await self.session.exec(insert(JobEvent), params=self._events)
        if self.metrics:
            await self.session.exec(insert(Metric), params=[metric.model_dump() for metric in self.metrics])


class Ledger:
    """Makes decisions and announces them.

    `publish` sends accepted frames to watchers, `dispatch` offers a READY attempt to workers, `discard` deletes from
    the artifact store; they are called after COMMIT, report their own failures and never raise.
    """

    def __init__(
        self,
        database: Database,
        publish: Callable[[str, list[Frame]], Awaitable[None]],
        dispatch: Callable[[Attempt], Awaitable[None]],
        discard: Callable[[list[str]], Awaitable[None]],
    ) -> None:
        self.database = database
        self._publish = publish
        self._dispatch = dispatch
        self._discard = discard

    @asynccontextmanager
    async def decide(self, job_id: str, tenant: str | None = None) -> AsyncIterator[Decision]:
        """Locks the job for the block. NotFound when there is none (of that tenant)."""
        async with self.database.write() as session:
            query = select(Job).where(Job.id == job_id).with_for_update()
            job = (await session.exec(query)).one_or_none()
            if job is None or (tenant is not None and job.tenant != tenant):
                raise NotFound("JOB_NOT_FOUND", f"there is no fine-tuning job {job_id!r}")
            query_attempt = select(Attempt).where(Attempt.job_id == job_id, col(Attempt.state) != "ENDED")
            attempt = (await session.exec(query_attempt)).one_or_none()
            decision = Decision(session, job, attempt)
            yield decision
            await decision.flush()
            failpoint("decision.flushed")
        failpoint("decision.committed")
        await self._announce(decision)

    @asynccontextmanager
    async def create(self, job: Job) -> AsyncIterator[Decision]:
        """The first decision about a job, which inserts it."""
        async with self.database.write() as session:
            session.add(job)
            await session.flush()
            decision = Decision(session, job, None)
            yield decision
            await decision.flush()
            failpoint("creation.flushed")
        failpoint("creation.committed")
        await self._announce(decision)

    async def _announce(self, decision: Decision) -> None:
        if decision.frames:
            await self._publish(decision.job.id, decision.frames)
            failpoint("decision.published")
        if decision.ready is not None:
            await self._dispatch(decision.ready)
            failpoint("decision.dispatched")
        if decision.discarded:
            await self._discard(decision.discarded)
