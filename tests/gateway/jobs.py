"""Jobs and workers for the gateway's tests."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.message import Message
from sqlmodel import col, select

from finetuneflow.v1.event_pb2 import Event, Log, StageCompleted, StageFailed
from finetuneflow.v1.fine_tuning_job_pb2 import Stage
from finetuneflow.v1.fine_tuning_job_spec_pb2 import DataSource, FineTuningJobSpec
from finetuneflow.v1.stage_result_pb2 import EvaluationResult, ExportResult, PreflightResult, TrainingResult
from finetuneflow.v1.work_pb2 import Assignment, ClaimRequest, ClaimResponse, ReportRequest, ReportResponse
from gateway.identifiers import new_id
from gateway.sql.tables import Attempt, Work, WorkEvent, now
from gateway.work import lifecycle
from gateway.work.kinds import FINE_TUNING_JOB, Kind, queue_of
from gateway.work.ledger import Ledger
from gateway.work.projection import new_result
from gateway.work.worker_requests import WorkerRequests

PAYLOADS = {p.message_type.name: p.name for p in Event.DESCRIPTOR.oneofs_by_name["payload"].fields}
RESULTS: dict[str, dict[str, Any]] = {
    "STAGE_PREFLIGHT": {"preflight": PreflightResult(total_steps=48)},
    "STAGE_TRAINING": {"training": TrainingResult(total_steps=48)},
    "STAGE_EVALUATION": {"evaluation": EvaluationResult(base_loss=4.0, tuned_loss=3.0)},
    "STAGE_EXPORT": {"export": ExportResult()},
}


def a_job(**fields: Any) -> Work:
    spec = FineTuningJobSpec(base_model="tiny", training_data=[DataSource(dataset="ds_1")])
    values: dict[str, Any] = {
        "id": new_id("ftjob"),
        "tenant": "default",
        "kind": "fine_tuning_job",
        "request_sha256": "0" * 64,
        "spec": spec.SerializeToString(),
        "pool": "default",
        "max_attempts": 3,
        "state": "JOB_STATE_VALIDATING",
        "stage": "STAGE_PREFLIGHT",
        "create_time": now(),
        "update_time": now(),
    }
    return Work(**(values | fields))


async def create(ledger: Ledger, kind: Kind = FINE_TUNING_JOB, **fields: Any) -> str:
    """Creates work of a kind with its first attempt; returns its id."""
    first = kind.plan[0]
    work = a_job(id=new_id(kind.prefix), kind=kind.name, **({"stage": first} | fields))
    async with ledger.create(work) as decision:
        if kind is not FINE_TUNING_JOB:
            decision.session.add(new_result(work, kind, work.id))
        lifecycle.open_attempt(decision, first, reason="CREATED")
    return work.id


async def job_of(ledger: Ledger, job_id: str) -> Work:
    async with ledger.database.read() as session:
        return (await session.exec(select(Work).where(Work.id == job_id))).one()


async def attempts_of(ledger: Ledger, job_id: str) -> Sequence[Attempt]:
    async with ledger.database.read() as session:
        query = select(Attempt).where(Attempt.work_id == job_id).order_by(col(Attempt.create_time))
        return (await session.exec(query)).all()


async def events_of(ledger: Ledger, job_id: str) -> list[Event]:
    async with ledger.database.read() as session:
        query = select(WorkEvent.event).where(WorkEvent.work_id == job_id).order_by(col(WorkEvent.sequence))
        return [Event.FromString(event) for event in (await session.exec(query)).all()]


def attempt_path(work_id: str, stage: str, attempt: int, name: str) -> str:
    return f"jobs/{work_id}/{stage.removeprefix('STAGE_').lower()}/{attempt}/{name}"


def completed_stage(work_id: str, stage: str, attempt: int) -> StageCompleted:
    """Returns the event that ends a stage with its result."""
    completed = StageCompleted(**RESULTS[stage])
    if completed.HasField("export"):
        completed.export.package_path = attempt_path(work_id, stage, attempt, "x.zip")
    return completed


class Worker:
    """Speaks the claim and report protocol for one attempt."""

    def __init__(self, acceptance: WorkerRequests, claim_id: str = "a" * 32) -> None:
        self.acceptance = acceptance
        self.claim_id = claim_id
        self.assignment = Assignment()
        self.ordinal = 0

    async def claim(self, attempt: Attempt) -> ClaimResponse:
        request = ClaimRequest(
            job_id=attempt.work_id,
            stage=Stage.Value(attempt.stage),
            attempt=attempt.attempt,
            claim_id=self.claim_id,
            node_id="node-1",
        )
        response = await self.acceptance.claim(request, queue_of(attempt.stage, attempt.pool))
        self.assignment.CopyFrom(response.assignment)
        return response

    def event(self, payload: Message, ordinal: int) -> bytes:
        event = Event(
            job_id=self.assignment.job_id,
            stage=self.assignment.stage,
            attempt=self.assignment.attempt,
            ordinal=ordinal,
            source="node-1",
            **{PAYLOADS[payload.DESCRIPTOR.name]: payload},  # type: ignore[arg-type]
        )
        return event.SerializeToString()

    async def report(self, *payloads: Message, first: int | None = None) -> ReportResponse:
        """Reports payloads from ordinal `first` on: by default what follows on."""
        start = self.ordinal if first is None else first
        events = [self.event(payload, start + index) for index, payload in enumerate(payloads)]
        response = await self.acceptance.report(
            ReportRequest(job_id=self.assignment.job_id, claim_id=self.claim_id, first_ordinal=start, events=events)
        )
        self.ordinal = max(self.ordinal, response.next_ordinal)
        return response

    async def complete(self) -> ReportResponse:
        given = self.assignment
        return await self.report(completed_stage(given.job_id, Stage.Name(given.stage), given.attempt))

    def path(self, name: str) -> str:
        """Returns the path in the artifact store of a file that this attempt makes."""
        given = self.assignment
        return attempt_path(given.job_id, Stage.Name(given.stage), given.attempt, name)

    async def fail(self, reason: str = "CRASHED", fault: str = "FAULT_SYSTEM_ERROR") -> ReportResponse:
        return await self.report(StageFailed(reason=reason, fault=fault, message="it broke", advice="correct it"))


def log_at(step: int, loss: float = 1.0) -> Log:
    return Log(step=step, total_steps=48, loss=loss, learning_rate=1e-4, elapsed_seconds=step, num_tokens=step * 10)


@asynccontextmanager
async def running(loop: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs one of a gateway's loops, which must not end by itself."""
    task = asyncio.create_task(loop)
    yield
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled(), f"the loop ended by itself: {task.exception()!r}"
