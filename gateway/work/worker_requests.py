"""Answers the two requests that workers make, claims and reports, each from one decision."""

import logging
from collections.abc import Sequence

from google.protobuf.message import DecodeError
from sqlalchemy import func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import NotFound, ServiceError, Unavailable
from chassis.events import ENDINGS
from chassis.security.sealing import seal
from chassis.server import gauges
from finetuneflow.v1.event_pb2 import ConfigResolved, Event, StageFailed
from finetuneflow.v1.fine_tuning_job_pb2 import Fault, Stage
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from finetuneflow.v1.stage_result_pb2 import EvaluationResult, PreflightResult, TrainingResult
from finetuneflow.v1.work_pb2 import (
    Assignment,
    ClaimRefused,
    ClaimRequest,
    ClaimResponse,
    Comparison,
    Directive,
    MetricSeries,
    ReportRequest,
    ReportResponse,
    TrainingStart,
    WorkItem,
)
from gateway import views
from gateway.comparisons import find_judges
from gateway.metrics import read_series
from gateway.planning_target import PlanningTargets, num_processes
from gateway.secret_store import SecretStore
from gateway.specs import dataset_ids, evaluation_sets, secrets_of
from gateway.sql.tables import Attempt, Metric, SavedArtifact, SavedCheckpoint, SavedResult, UploadedDataset, Work
from gateway.work import lifecycle
from gateway.work.kinds import EVALUATION, FINE_TUNING_JOB, queue_of
from gateway.work.ledger import ELAPSED_SECONDS, Decision, Ledger
from gateway.work.projection import completion_reason, project
from gateway.work.queue_order import next_waiting
from gateway.work.reported_events import MEASUREMENTS, SHARDS, problem_of

log = logging.getLogger(__name__)

_DIRECTIVES = {
    "JOB_STATE_PAUSING": Directive.DIRECTIVE_PAUSE,
    "JOB_STATE_CANCELLING": Directive.DIRECTIVE_CANCEL,
}
_MADE_SHARDS = 100
_MEASUREMENT_FILES = 200
_MEASURED = "evaluation/measurements/"
_WEIGHTS_IN_NAME = 16
_CURVE_POINTS = 10_000
_FEWEST_POINTS = 2


class WorkerRequests:
    """Answers claims and reports."""

    def __init__(
        self,
        ledger: Ledger,
        machines: PlanningTargets,
        secrets: SecretStore | None = None,
        *,
        max_curves_bytes: int = 512 * 1024,
    ) -> None:
        """Without `secrets` no claim gets any. `max_curves_bytes` limits the curves in the answer to a claim: an answer
        that is larger than the broker's messages (1 MiB by default) would never arrive."""
        self._secrets = secrets
        self._ledger = ledger
        self._machines = machines
        self._max_curves_bytes = max_curves_bytes

    async def claim(self, request: ClaimRequest, queue: tuple[str, str]) -> ClaimResponse:
        """Grants a READY attempt of work that is to run, to a worker of `queue`, its service and pool, or names another
        one that is next. The same claim_id gets the same grant again."""
        try:
            async with self._ledger.decide(request.job_id) as decision:
                attempt = decision.attempt
                refusal = _refusal(decision, request, queue)
                granted_before = attempt is not None and attempt.state == "CLAIMED" and not refusal
                if request.take_next and not granted_before:
                    following = await next_waiting(decision.connection, queue)
                    if following is not None and following != WorkItem(
                        job_id=request.job_id, stage=request.stage, attempt=request.attempt
                    ):
                        return ClaimResponse(instead=following)
                if attempt is None or refusal:
                    return ClaimResponse(refused=ClaimRefused(reason=refusal))
                if attempt.state == "READY":
                    lifecycle.claim(decision, attempt, request.claim_id, request.node_id)
                assignment = await self._assignment(decision, attempt)
        except NotFound:
            following = None
            if request.take_next:
                async with self._ledger.database.read() as session:
                    following = await next_waiting(await session.connection(), queue)
            if following is not None:
                return ClaimResponse(instead=following)
            return ClaimResponse(refused=ClaimRefused(reason="UNKNOWN"))
        await self._add_curves(assignment)
        await self._add_shards(assignment)
        await self._add_measurements(assignment)
        await self._add_machine(assignment)
        await self._add_secrets(assignment, request.public_key)
        return ClaimResponse(assignment=assignment)

    async def report(self, request: ReportRequest) -> ReportResponse:
        """Accepts the new events of a report, in order, each once."""
        stop = ReportResponse(next_ordinal=request.first_ordinal, directive=Directive.DIRECTIVE_STOP)
        try:
            async with self._ledger.decide(request.job_id) as decision:
                attempt = decision.attempt
                if attempt is None or attempt.state != "CLAIMED" or attempt.claim_id != request.claim_id:
                    stop.message = "the claim is not current"
                    return stop
                attempt.beat += 1
                before = attempt.next_ordinal
                if request.first_ordinal <= attempt.next_ordinal:
                    fresh = request.events[attempt.next_ordinal - request.first_ordinal :]
                    await self._accept(decision, attempt, fresh)
                answer = ReportResponse(
                    next_ordinal=attempt.next_ordinal,
                    directive=_DIRECTIVES.get(decision.work.state, Directive.DIRECTIVE_RUN),
                )
        except NotFound:
            stop.message = "the work was deleted"
            return stop
        gauges.REPORTS.inc()
        gauges.EVENTS.inc(answer.next_ordinal - before)
        return answer

    async def expire(self, work_id: str, claim_id: str, beat: int) -> None:
        """Ends a claim whose worker has been silent, unless it has reported since."""
        try:
            async with self._ledger.decide(work_id) as decision:
                attempt = decision.attempt
                if attempt is None or attempt.claim_id != claim_id or attempt.beat != beat:
                    return
                self._fail(decision, attempt, "LEASE_EXPIRED", f"node {attempt.node_id} stopped reporting")
        except NotFound:
            return

    async def _accept(self, decision: Decision, attempt: Attempt, events: Sequence[bytes]) -> None:
        wanted = (attempt.work_id, Stage.Value(attempt.stage), attempt.attempt)
        first = attempt.next_ordinal
        for ordinal, data in enumerate(events, first):
            try:
                event = Event.FromString(data)
            except DecodeError as error:
                attempt.next_ordinal = ordinal
                self._fail(decision, attempt, "BAD_EVENT", f"the worker sent an event that can't be decoded: {error}")
                return
            if (event.job_id, event.stage, event.attempt) != wanted or event.ordinal != ordinal:
                attempt.next_ordinal = ordinal
                self._fail(decision, attempt, "BAD_EVENT", "the worker sent an event of another attempt")
                return
            if problem := await problem_of(decision, attempt, event):
                attempt.next_ordinal = ordinal
                self._fail(decision, attempt, "BAD_EVENT", f"the worker {problem}")
                return
            sequence = decision.accept(data, event)
            if event.WhichOneof("payload") in ENDINGS:
                attempt.next_ordinal = ordinal + 1
                await project(decision, event, sequence)
                self._end(decision, attempt, event)
                return
            await project(decision, event, sequence)
        attempt.next_ordinal = first + len(events)

    def _end(self, decision: Decision, attempt: Attempt, event: Event) -> None:
        match event.WhichOneof("payload"):
            case "stage_completed":
                reason = completion_reason(decision.work.training)
                lifecycle.end_attempt(decision, attempt, lifecycle.Completed(reason))
            case "stage_failed":
                lifecycle.end_attempt(decision, attempt, lifecycle.Failed(event.stage_failed))
            case "stage_released":
                lifecycle.end_attempt(decision, attempt, lifecycle.Released(event.stage_released.reason))

    def _fail(self, decision: Decision, attempt: Attempt, reason: str, message: str) -> None:
        failure = StageFailed(fault=Fault.FAULT_SYSTEM_ERROR, reason=reason, message=message)
        decision.append(failure)
        lifecycle.end_attempt(decision, attempt, lifecycle.Failed(failure))

    async def _assignment(self, decision: Decision, attempt: Attempt) -> Assignment:
        work, session = decision.work, decision.session
        # A job is not deleted before everything that is made of its model has ended. Work about a base model
        # alone has none; its spec is an EvaluationSpec or an ExportSpec.
        job = work if work.job_id is None else await session.get_one(Work, work.job_id)
        spec = FineTuningJobSpec.FromString(job.spec if job.kind == FINE_TUNING_JOB.name else b"")
        assignment = Assignment(
            job_id=work.id,
            fine_tuning_job_id=job.id,
            tenant=work.tenant,
            stage=attempt.stage,
            attempt=attempt.attempt,
            claim_id=attempt.claim_id,
            spec=spec,
            merged_spec=FineTuningJobSpec.FromString(job.merged_spec),
            create_time=views.timestamp(job.create_time),
        )
        if work.config is not None:
            assignment.resolved_spec.CopyFrom(ConfigResolved.FromString(work.config).resolved_spec)
        if work.comparison is not None:
            assignment.comparison.CopyFrom(Comparison.FromString(work.comparison))
        if attempt.stage == "STAGE_EVALUATION":
            try:
                judges = await find_judges(session, work.tenant, assignment.resolved_spec.evaluation, "spec.evaluation")
                assignment.judges.extend(judges)
            except ServiceError as error:
                # The worker reports it: the job of a judge was deleted after this one was created.
                log.warning("a judge of %s cannot be used: %s", work.id, error)
        if job.start is not None:
            assignment.start.CopyFrom(TrainingStart.FromString(job.start))
        # An evaluation asked for alone has sets of its own.
        named = {*dataset_ids(spec), *(id for _, id in evaluation_sets(assignment.resolved_spec.evaluation, ""))}
        named |= {source.dataset for source in assignment.comparison.data}
        datasets = select(UploadedDataset).where(
            UploadedDataset.tenant == work.tenant, col(UploadedDataset.id).in_(named)
        )
        assignment.datasets.extend(views.dataset(row) for row in (await session.exec(datasets)).all())
        checkpoints = (
            select(SavedCheckpoint)
            .where(SavedCheckpoint.work_id == job.id, col(SavedCheckpoint.pruned).is_(False))
            .order_by(col(SavedCheckpoint.step).desc(), col(SavedCheckpoint.sequence).desc())
        )
        assignment.checkpoints.extend(views.checkpoint(row) for row in (await session.exec(checkpoints)).all())
        if job.preflight is not None:
            assignment.preflight.CopyFrom(PreflightResult.FromString(job.preflight))
        if job.training is not None:
            assignment.training.CopyFrom(TrainingResult.FromString(job.training))
        evaluations = select(SavedResult.result).where(
            SavedResult.work_id == job.id, SavedResult.kind == EVALUATION.name, col(SavedResult.result).is_not(None)
        )
        evaluation = (await session.exec(evaluations.order_by(col(SavedResult.id).desc()))).first()
        if evaluation is not None:
            assignment.evaluation.CopyFrom(EvaluationResult.FromString(evaluation))
        return assignment

    async def _add_shards(self, assignment: Assignment) -> None:
        """Adds the token shards of other jobs. Only a worker can tell whether they are the ones it needs."""
        if assignment.stage != Stage.STAGE_PREFLIGHT:
            return
        query = select(SavedArtifact).where(
            SavedArtifact.tenant == assignment.tenant,
            SavedArtifact.kind == SHARDS,
            # Any worker may give an artifact this kind; only a preflight makes the shards that others train on.
            col(SavedArtifact.name).startswith("preflight/"),
            SavedArtifact.work_id != assignment.job_id,
        )
        async with self._ledger.database.read() as session:
            newest = (await session.exec(query.order_by(col(SavedArtifact.id).desc()).limit(_MADE_SHARDS))).all()
        for made in newest:
            key = made.path.rpartition("/")[2]
            assignment.shards.add(content_key=key, path=made.path, manifest_sha256=made.sha256)

    async def _add_measurements(self, assignment: Assignment) -> None:
        """Adds the files of evaluations on the same base weights. Only a worker can tell which rows it needs."""
        if assignment.stage != Stage.STAGE_EVALUATION:
            return
        weights = assignment.preflight.base_model.weights_sha256[:_WEIGHTS_IN_NAME]
        query = select(SavedArtifact).where(
            SavedArtifact.tenant == assignment.tenant,
            SavedArtifact.kind == MEASUREMENTS,
            # Any worker may give an artifact this kind; only evaluators measure.
            col(SavedArtifact.name).startswith(f"{_MEASURED}{weights}/" if weights else _MEASURED),
        )
        if not weights:
            # Which weights a base model alone has, a worker finds out; it goes on with the rows of earlier attempts.
            query = query.where(SavedArtifact.work_id == assignment.job_id)
        async with self._ledger.database.read() as session:
            newest = await session.exec(query.order_by(col(SavedArtifact.id).desc()).limit(_MEASUREMENT_FILES))
            for saved in newest.all():
                assignment.measurements.add(path=saved.path, sha256=saved.sha256)

    async def _add_curves(self, assignment: Assignment) -> None:
        """Adds what is read from curves. They may be long, so they are read outside the decision: others would wait."""
        if assignment.stage not in (Stage.STAGE_TRAINING, Stage.STAGE_EXPORT):
            return
        async with self._ledger.database.read() as session:
            if assignment.stage == Stage.STAGE_EXPORT:
                assignment.metrics.extend(await _curves(session, assignment.fine_tuning_job_id, self._max_curves_bytes))
            else:
                assignment.prior_training_seconds = await _training_seconds(session, assignment.fine_tuning_job_id)

    async def _add_secrets(self, assignment: Assignment, public_key: bytes) -> None:
        """Adds the secrets that the stage needs, sealed to the claimant."""
        names = secrets_of(assignment)
        if self._secrets is None or not names:
            return
        for name, value in (await self._secrets.use(assignment.tenant, names)).items():
            try:
                assignment.sealed_secrets[name] = seal(value, public_key, assignment.claim_id, name)
            except ValueError:
                extra = {"job_id": assignment.job_id}
                log.error("a worker claimed without a public key, so it gets no secrets", extra=extra)

    async def _add_machine(self, assignment: Assignment) -> None:
        if assignment.stage != Stage.STAGE_PREFLIGHT:
            return
        assignment.observed.extend(await self._machines.observed())
        try:
            hardware = await self._machines.that_trains(
                assignment.spec.resources.pool or "default", num_processes(assignment.spec)
            )
        except Unavailable as error:
            # The claim is granted all the same: a job does not wait for information.
            log.warning("the preflight of %s does not know the trainers' machines: %s", assignment.job_id, error)
            return
        if hardware is not None:
            assignment.hardware.CopyFrom(hardware)


async def _curves(session: AsyncSession, work_id: str, max_bytes: int) -> list[MetricSeries]:
    """Reads every curve, with as many points as fit into `max_bytes`."""
    points = _CURVE_POINTS
    while True:
        curves = await read_series(session, work_id, (), points)
        size = sum(curve.ByteSize() for curve in curves)
        if size <= max_bytes or points == _FEWEST_POINTS:
            return curves
        points = max(int(points * 0.9 * max_bytes / size), _FEWEST_POINTS)


async def _training_seconds(session: AsyncSession, work_id: str) -> float:
    """Sums the seconds that earlier attempts trained, lost steps included."""
    seconds = (
        select(func.max(Metric.value))
        .where(Metric.work_id == work_id, Metric.name == ELAPSED_SECONDS)
        .group_by(col(Metric.attempt))
    )
    return sum(value or 0.0 for value in (await session.exec(seconds)).all())


def _refusal(decision: Decision, request: ClaimRequest, queue: tuple[str, str]) -> str:
    attempt = decision.attempt
    if attempt is None or (Stage.Value(attempt.stage), attempt.attempt) != (request.stage, request.attempt):
        return "ENDED"
    if queue_of(attempt.stage, attempt.pool) != queue:
        service, pool = queue
        extra = {"job_id": request.job_id}
        log.warning("a %s of pool %s (%s) claimed work of another queue", service, pool, request.node_id, extra=extra)
        return "UNKNOWN"
    if attempt.state == "CLAIMED":
        return "" if attempt.claim_id == request.claim_id else "CLAIMED_BY_ANOTHER"
    return "" if decision.work.state in lifecycle.RUNNABLE else "NOT_WANTED"
