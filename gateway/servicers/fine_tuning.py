"""FineTuningService: jobs, their history and their live stream."""

import hashlib
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import grpc
from sqlalchemy import case
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, delete, select
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable, Violation
from chassis.store.artifact_store import ArtifactStore
from engine.catalogue import Catalogue
from finetuneflow.v1 import fine_tuning_service_pb2 as api
from finetuneflow.v1.event_pb2 import Event, Severity
from finetuneflow.v1.fine_tuning_job_pb2 import FineTuningJob, JobState
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from finetuneflow.v1.fine_tuning_service_pb2_grpc import (
    FineTuningServiceServicer,
    add_FineTuningServiceServicer_to_server,
)
from finetuneflow.v1.probe_service_pb2 import PreflightFineTuningJobRequest
from gateway import views
from gateway.identifiers import new_id
from gateway.metrics import read_series
from gateway.paging import MAX_PAGE_SIZE, page_of
from gateway.preflights import Preflights, refuse_as_reported
from gateway.servicers.handlers import add_with
from gateway.specs import check_datasets, check_spec
from gateway.sql.tables import (
    Attempt,
    Job,
    JobEvaluation,
    JobEvent,
    JobExport,
    Metric,
    SavedArtifact,
    SavedCheckpoint,
    now,
)
from gateway.tenancy import tenant_of
from gateway.uncancellable import finished, in_thread
from gateway.watch.fanout import Fanout, check_within, first_bytes
from gateway.watch.frames import UNKNOWN_KIND, frame_of_stored
from gateway.work import lifecycle
from gateway.work.ledger import Decision, Ledger

Context = grpc.aio.ServicerContext[Any, Any]

_KINDS = frozenset(f.name for f in Event.DESCRIPTOR.oneofs_by_name["payload"].fields) | {UNKNOWN_KIND}
_WATCH_HEARTBEAT_SECONDS = 15.0
_MAX_REQUEST_ID = 128
_EVENTS_PAGE_SIZE = 200
_MAX_LABELS = 64
_MAX_ATTEMPTS_SHOWN = 100
_MAX_SERIES = 256


class FineTuning(FineTuningServiceServicer):
    """Served by the gateway; every method is one read or one decision."""

    def __init__(
        self,
        ledger: Ledger,
        fanout: Fanout,
        catalogue: Catalogue,
        store: ArtifactStore,
        preflights: Preflights | None = None,
    ) -> None:
        """Without `preflights` no probe is known, and a dry run is UNAVAILABLE."""
        self._ledger = ledger
        self._preflights = preflights
        self._database = ledger.database
        self._fanout = fanout
        self._catalogue = catalogue
        self._store = store

    async def CreateFineTuningJob(
        self, request: api.CreateFineTuningJobRequest, context: Context
    ) -> api.CreateFineTuningJobResponse:
        tenant = tenant_of(context)
        if len(request.request_id) > _MAX_REQUEST_ID:
            raise InvalidArgument(
                "INVALID_REQUEST_ID",
                f"request_id has {len(request.request_id)} characters, more than {_MAX_REQUEST_ID}",
                [Violation("request_id", f"at most {_MAX_REQUEST_ID} characters")],
            )
        digest = hashlib.sha256(request.spec.SerializeToString(deterministic=True)).hexdigest()
        if request.request_id:
            earlier = await self._earlier(tenant, request.request_id, digest)
            if earlier is not None and not request.validate_only:
                return api.CreateFineTuningJobResponse(fine_tuning_job=earlier)
        job = self._checked(tenant, request.spec)
        job.request_id, job.request_sha256 = request.request_id or None, digest
        if request.validate_only:
            return await self._dry_run(job, request.spec, context)
        try:
            async with self._ledger.create(job) as decision:
                await check_datasets(decision.session, tenant, request.spec)
                lifecycle.open_attempt(decision, "STAGE_PREFLIGHT", reason="CREATED")
        except IntegrityError:
            # Somebody created it with the same request_id between our look and our insert.
            earlier = await self._earlier(tenant, request.request_id, digest) if request.request_id else None
            if earlier is None:
                raise
            return api.CreateFineTuningJobResponse(fine_tuning_job=earlier)
        return api.CreateFineTuningJobResponse(fine_tuning_job=views.job(job))

    async def GetFineTuningJob(
        self, request: api.GetFineTuningJobRequest, context: Context
    ) -> api.GetFineTuningJobResponse:
        async with self._database.read() as session:
            row = await self._find(session, request.job_id, tenant_of(context))
            job = (await _messages(session, [row]))[0]
            # Not by time: a clock that was set back does not turn history round.
            by_stage = case({stage: number for number, stage in enumerate(lifecycle.STAGES)}, value=col(Attempt.stage))
            newest = select(Attempt).where(Attempt.job_id == row.id)
            newest = newest.order_by(by_stage.desc(), col(Attempt.attempt).desc())
            attempts = (await session.exec(newest.limit(_MAX_ATTEMPTS_SHOWN))).all()
            job.attempts.extend(views.attempt(attempt) for attempt in reversed(attempts))
            return api.GetFineTuningJobResponse(fine_tuning_job=job)

    async def ListFineTuningJobs(
        self, request: api.ListFineTuningJobsRequest, context: Context
    ) -> api.ListFineTuningJobsResponse:
        _check_labels(request.labels)
        states = [_state_name(state) for state in request.states]
        page = page_of(request, "jobs", *states, *(f"{k}={v}" for k, v in sorted(request.labels.items())))
        query = select(Job).where(Job.tenant == tenant_of(context)).order_by(col(Job.id).desc())
        if page.after:
            query = query.where(Job.id < page.after)
        if states:
            query = query.where(col(Job.state).in_(states))
        for key, value in request.labels.items():
            query = query.where(col(Job.labels)[key].as_string() == value)
        async with self._database.read() as session:
            rows = (await session.exec(query.limit(page.limit))).all()
            kept, token = page.cut(rows, lambda row: row.id)
            return api.ListFineTuningJobsResponse(
                fine_tuning_jobs=await _messages(session, kept), next_page_token=token
            )

    async def CancelFineTuningJob(
        self, request: api.CancelFineTuningJobRequest, context: Context
    ) -> api.CancelFineTuningJobResponse:
        job = await self._verb(request.job_id, context, lifecycle.cancel)
        return api.CancelFineTuningJobResponse(fine_tuning_job=job)

    async def PauseFineTuningJob(
        self, request: api.PauseFineTuningJobRequest, context: Context
    ) -> api.PauseFineTuningJobResponse:
        job = await self._verb(request.job_id, context, lifecycle.pause)
        return api.PauseFineTuningJobResponse(fine_tuning_job=job)

    async def ResumeFineTuningJob(
        self, request: api.ResumeFineTuningJobRequest, context: Context
    ) -> api.ResumeFineTuningJobResponse:
        job = await self._verb(request.job_id, context, lifecycle.resume)
        return api.ResumeFineTuningJobResponse(fine_tuning_job=job)

    async def DeleteFineTuningJob(
        self, request: api.DeleteFineTuningJobRequest, context: Context
    ) -> api.DeleteFineTuningJobResponse:
        await finished(self._forget(request.job_id, tenant_of(context)))
        return api.DeleteFineTuningJobResponse()

    async def _forget(self, job_id: str, tenant: str) -> None:
        async with self._database.write() as session:
            job = await self._find(session, job_id, tenant, lock=True)
            if job.state not in lifecycle.TERMINAL:
                state = job.state.removeprefix("JOB_STATE_")
                way = "wait for its end" if state == "CANCELLING" else "cancel it"
                raise FailedPrecondition("JOB_NOT_ENDED", f"job {job.id} is {state}; {way} before it is deleted")
            for table in (Attempt, JobEvent, Metric, SavedCheckpoint, SavedArtifact, JobEvaluation, JobExport):
                await session.exec(delete(table).where(col(table.job_id) == job.id))
            await session.delete(job)
        # After the rows: an artifact without a row is waste, a row without its artifact would be a lie.
        await in_thread(self._store.delete, f"{tenant}/jobs/{job_id}")

    def WatchFineTuningJob(self, request: api.WatchFineTuningJobRequest, context: Context) -> AsyncIterator[bytes]:
        """Serialised responses: `add_to_server` registers this method without a serialiser."""
        _check_cursor(request.after_sequence)
        kinds, severity = _checked_kinds(request.kinds), _checked_severity(request.min_severity)
        return self._fanout.watch(
            request.job_id, tenant_of(context), request.after_sequence, kinds, severity, _WATCH_HEARTBEAT_SECONDS
        )

    async def ListFineTuningJobEvents(
        self, request: api.ListFineTuningJobEventsRequest, context: Context
    ) -> api.ListFineTuningJobEventsResponse:
        _check_cursor(request.after_sequence)
        kinds = _checked_kinds(request.kinds)
        if not 0 <= request.page_size <= MAX_PAGE_SIZE:
            message = f"{request.page_size} is out of range [1, {MAX_PAGE_SIZE}]; 0 means {_EVENTS_PAGE_SIZE}"
            raise InvalidArgument("INVALID_PAGE_SIZE", f"page_size {message}", [Violation("page_size", message)])
        size = request.page_size or _EVENTS_PAGE_SIZE
        query = select(JobEvent).where(JobEvent.job_id == request.job_id, JobEvent.sequence > request.after_sequence)
        if kinds:
            query = query.where(col(JobEvent.kind).in_(kinds))
        async with self._database.read() as session:
            job = await self._find(session, request.job_id, tenant_of(context))
            check_within(job.id, request.after_sequence, job.last_sequence)
            rows = (await session.exec(query.order_by(col(JobEvent.sequence)).limit(size))).all()
        frames = first_bytes([frame_of_stored(row.event) for row in rows])
        complete = len(frames) == len(rows) < size
        through = job.last_sequence if complete else frames[-1].sequence
        events = [Event.FromString(row.event) for row in rows[: len(frames)]]
        return api.ListFineTuningJobEventsResponse(events=events, through_sequence=through)

    async def ListCheckpoints(
        self, request: api.ListCheckpointsRequest, context: Context
    ) -> api.ListCheckpointsResponse:
        query = (
            select(SavedCheckpoint)
            .where(SavedCheckpoint.job_id == request.job_id, col(SavedCheckpoint.pruned).is_(False))
            .order_by(col(SavedCheckpoint.step).desc(), col(SavedCheckpoint.sequence).desc())
        )
        async with self._database.read() as session:
            await self._find(session, request.job_id, tenant_of(context))
            rows = (await session.exec(query)).all()
        return api.ListCheckpointsResponse(checkpoints=[views.checkpoint(row) for row in rows])

    async def GetMetrics(self, request: api.GetMetricsRequest, context: Context) -> api.GetMetricsResponse:
        max_points = request.max_points or 10_000
        if not 2 <= max_points <= 100_000:
            raise InvalidArgument(
                "INVALID_MAX_POINTS",
                f"max_points is {max_points}; it ranges from 2 to 100,000",
                [Violation("max_points", "range [2, 100000], 0 means 10,000")],
            )
        if len(request.names) > _MAX_SERIES:
            problem = f"{len(request.names)} names; at most {_MAX_SERIES} are taken, and none stands for all"
            raise InvalidArgument("TOO_MANY_NAMES", problem, [Violation("names", problem)])
        async with self._database.read() as session:
            await self._find(session, request.job_id, tenant_of(context))
            return api.GetMetricsResponse(series=await read_series(session, request.job_id, request.names, max_points))

    async def _verb(self, job_id: str, context: Context, verb: Callable[[Decision], None]) -> FineTuningJob:
        async with self._ledger.decide(job_id, tenant_of(context)) as decision:
            verb(decision)
            return (await _messages(decision.session, [decision.job]))[0]

    def _checked(self, tenant: str, spec: FineTuningJobSpec) -> Job:
        """A job row for a spec that could run here; raises what is wrong with it."""
        config = check_spec(spec, self._catalogue)
        moment = now()
        return Job(
            id=new_id("ftjob"),
            tenant=tenant,
            request_sha256="",
            spec=spec.SerializeToString(),
            labels=dict(spec.labels),
            pool=config.resources.pool,
            max_attempts=config.max_attempts,
            state="JOB_STATE_VALIDATING",
            stage="STAGE_PREFLIGHT",
            create_time=moment,
            update_time=moment,
        )

    async def _dry_run(self, job: Job, spec: FineTuningJobSpec, context: Context) -> api.CreateFineTuningJobResponse:
        if self._preflights is None:
            raise Unavailable("NO_PROBE", "No probe is reachable; start one, or try again when it is up.")
        found = await self._preflights.ask(PreflightFineTuningJobRequest(spec=spec), context)
        refuse_as_reported(found.report)
        job.id = ""
        would_be = views.job(job)
        would_be.resolved_spec.CopyFrom(found.resolved_spec)
        would_be.resolutions.extend(found.resolutions)
        would_be.preflight.CopyFrom(found.result)
        return api.CreateFineTuningJobResponse(fine_tuning_job=would_be, report=found.report)

    async def _earlier(self, tenant: str, request_id: str, digest: str) -> FineTuningJob | None:
        async with self._database.read() as session:
            query = select(Job).where(Job.tenant == tenant, Job.request_id == request_id)
            job = (await session.exec(query)).one_or_none()
            if job is None:
                return None
            if job.request_sha256 != digest:
                raise AlreadyExists(
                    "REQUEST_ID_REUSED",
                    f"request_id {request_id!r} already created job {job.id} from another spec; use a new request_id",
                    metadata={"job_id": job.id},
                )
            return (await _messages(session, [job]))[0]

    async def _find(self, session: AsyncSession, job_id: str, tenant: str, *, lock: bool = False) -> Job:
        query = select(Job).where(Job.id == job_id, Job.tenant == tenant)
        job = (await session.exec(query.with_for_update() if lock else query)).one_or_none()
        if job is None:
            raise NotFound("JOB_NOT_FOUND", f"there is no fine-tuning job {job_id!r}")
        return job


def add_to_server(servicer: FineTuning, server: Any) -> None:
    """As the generated function, but Watch's answers are bytes already: nothing is serialised per subscriber."""
    handler = grpc.unary_stream_rpc_method_handler(
        servicer.WatchFineTuningJob,
        request_deserializer=api.WatchFineTuningJobRequest.FromString,
        response_serializer=None,
    )
    service = api.DESCRIPTOR.services_by_name["FineTuningService"].full_name
    add_with({"WatchFineTuningJob": handler}, service, add_FineTuningServiceServicer_to_server, servicer, server)


async def _messages(session: AsyncSession, jobs: Sequence[Job]) -> list[FineTuningJob]:
    ids = [job.id for job in jobs]
    evaluations = select(JobEvaluation.job_id, JobEvaluation.id).where(col(JobEvaluation.job_id).in_(ids))
    exports = select(JobExport.job_id, JobExport.id).where(col(JobExport.job_id).in_(ids))
    evaluation_ids = dict((await session.exec(evaluations.order_by(JobEvaluation.id))).all())
    export_ids = dict((await session.exec(exports.order_by(JobExport.id))).all())
    return [
        views.job(job, evaluation_id=evaluation_ids.get(job.id, ""), export_id=export_ids.get(job.id, ""))
        for job in jobs
    ]


def _state_name(state: int) -> str:
    if state not in JobState.values() or state == JobState.JOB_STATE_UNSPECIFIED:
        raise InvalidArgument("INVALID_STATE", f"{state} is no job state", [Violation("states", "an unknown value")])
    return JobState.Name(state)


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > _MAX_LABELS or not all(re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key) for key in labels):
        problem = f"at most {_MAX_LABELS}, with keys that match [a-z][a-z0-9_-]{{0,62}}"
        raise InvalidArgument(
            "INVALID_LABELS", f"labels can't be searched for: {problem}", [Violation("labels", problem)]
        )


def _checked_kinds(kinds: Sequence[str]) -> frozenset[str]:
    unknown = sorted(set(kinds) - _KINDS)
    if unknown:
        known = ", ".join(sorted(_KINDS - {UNKNOWN_KIND}))
        raise InvalidArgument(
            "INVALID_KIND",
            f"no such kind of event: {', '.join(unknown)}; there are {known}",
            [Violation(f"kinds[{list(kinds).index(kind)}]", f"unknown kind {kind!r}") for kind in unknown],
        )
    return frozenset(kinds)


def _checked_severity(severity: int) -> int:
    if severity not in Severity.values():
        message = f"{severity} is no severity"
        raise InvalidArgument("INVALID_SEVERITY", message, [Violation("min_severity", message)])
    return severity


def _check_cursor(after_sequence: int) -> None:
    if after_sequence < 0:
        raise InvalidArgument(
            "INVALID_CURSOR",
            f"after_sequence is {after_sequence}; it can't be negative",
            [Violation("after_sequence", "0 or greater")],
        )
