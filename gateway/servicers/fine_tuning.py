"""FineTuningService: jobs, their history and their live stream."""

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import grpc
from sqlalchemy.orm import defer
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import InvalidArgument, Violation
from engine.catalogue import Catalogue
from engine.config.spec_proto import config_to_spec
from finetuneflow.v1 import fine_tuning_service_pb2 as api
from finetuneflow.v1.fine_tuning_job_pb2 import FineTuningJob
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from finetuneflow.v1.fine_tuning_service_pb2_grpc import (
    FineTuningServiceServicer,
    add_FineTuningServiceServicer_to_server,
)
from finetuneflow.v1.probe_service_pb2 import PreflightFineTuningJobRequest
from gateway import views
from gateway.access.callers import tenant_of
from gateway.comparisons import find_judges
from gateway.identifiers import new_id
from gateway.integrations import check_job_addresses, delivery_of, integrations_of
from gateway.job_checks import check_offers_and_keys
from gateway.metrics import read_series
from gateway.outbound_addresses import NO_PRIVATE_ADDRESSES, AddressPolicy
from gateway.paging import page_of
from gateway.preflights import Preflights, refuse_as_reported
from gateway.secret_store import SecretStore
from gateway.servicers.handlers import add_with_byte_stream
from gateway.servicers.work import WorkMethods, request_digest, state_names
from gateway.specs import check_datasets, check_secrets, check_spec, named_secrets
from gateway.sql.tables import SavedCheckpoint, SavedResult, Work, now
from gateway.training_start import FoundStart, find_start
from gateway.tuned_models import trained_job
from gateway.waiting import Nodes, why_it_waits
from gateway.work import lifecycle
from gateway.work.kinds import EVALUATION, EXPORT, FINE_TUNING_JOB
from gateway.work.ledger import Decision

Context = grpc.aio.ServicerContext[Any, Any]

_MAX_LABELS = 64
_LABEL_KEY = "[a-z][a-z0-9_-]{0,62}"
_MAX_SERIES = 256


class FineTuning(FineTuningServiceServicer):
    """Served by the gateway; every method is one read or one decision."""

    def __init__(
        self,
        methods: WorkMethods,
        catalogue: Catalogue,
        preflights: Preflights,
        nodes: Nodes | None = None,
        addresses: AddressPolicy = NO_PRIVATE_ADDRESSES,
        secrets: SecretStore | None = None,
    ) -> None:
        """`nodes` tells who could take a job that waits, which tasks evaluators have, and which types of files
        exporters make; `addresses` are those that its integrations may name, `secrets` those that they use."""
        self._addresses, self._secrets = addresses, secrets
        self._nodes = nodes
        self._work = methods
        self._database = methods.database
        self._catalogue = catalogue
        self._preflights = preflights

    async def CreateFineTuningJob(
        self, request: api.CreateFineTuningJobRequest, context: Context
    ) -> api.CreateFineTuningJobResponse:
        tenant = tenant_of(context)
        digest = request_digest(request.spec)
        earlier = await self._work.earlier(tenant, request.request_id, digest)
        if earlier is not None and not request.validate_only:
            return api.CreateFineTuningJobResponse(fine_tuning_job=await self._message(earlier))
        async with self._database.read() as session:
            start = await find_start(session, tenant, request.spec)
        job = self._checked(tenant, request.spec, digest, start)
        if request.validate_only:
            return await self._dry_run(job, request.spec, context)
        merged = FineTuningJobSpec.FromString(job.merged_spec)
        await check_offers_and_keys(tenant, merged, self._nodes, self._secrets)

        async def check(decision: Decision) -> None:
            if start is not None and start.job_id is not None:
                # Locked, so that the job whose adapter it is is not deleted at the same time.
                await trained_job(decision.session, start.job_id, tenant, start.field, lock=True)
            await check_datasets(decision.session, tenant, request.spec)
            await find_judges(decision.session, tenant, request.spec.evaluation, "spec.evaluation", lock=True)
            await check_secrets(decision.session, tenant, named_secrets(request.spec))
            for integration in merged.integrations:
                decision.session.add(delivery_of(tenant, job.id, integration))

        job = await self._work.create(job, request.request_id, check)
        return api.CreateFineTuningJobResponse(fine_tuning_job=await self._message(job))

    async def GetFineTuningJob(
        self, request: api.GetFineTuningJobRequest, context: Context
    ) -> api.GetFineTuningJobResponse:
        async with self._database.read() as session:
            row = await self._work.find(session, request.job_id, tenant_of(context))
            job = (await _messages(session, [row]))[0]
            attempts = await self._work.attempts(session, row)
            job.attempts.extend(map(views.attempt, attempts))
            job.integrations.extend(await integrations_of(session, row.id))
            if self._nodes is not None and attempts and attempts[-1].state == "READY":
                job.waiting = await why_it_waits(session, attempts[-1], self._nodes)
            return api.GetFineTuningJobResponse(fine_tuning_job=job)

    async def ListFineTuningJobs(
        self, request: api.ListFineTuningJobsRequest, context: Context
    ) -> api.ListFineTuningJobsResponse:
        _check_labels(request.labels)
        states = state_names(request.states)
        page = page_of(request, "jobs", *states, *(f"{k}={v}" for k, v in sorted(request.labels.items())))
        query = select(Work).where(Work.tenant == tenant_of(context), Work.kind == FINE_TUNING_JOB.name)
        query = query.order_by(col(Work.id).desc())
        if page.after:
            query = query.where(Work.id < page.after)
        if states:
            query = query.where(col(Work.state).in_(states))
        for key, value in request.labels.items():
            query = query.where(col(Work.labels)[key].as_string() == value)
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
        await self._work.delete(request.job_id, tenant_of(context))
        return api.DeleteFineTuningJobResponse()

    def WatchFineTuningJob(self, request: api.WatchFineTuningJobRequest, context: Context) -> AsyncIterator[bytes]:
        return self._work.watch(
            request.job_id, tenant_of(context), request.after_sequence, request.kinds, request.min_severity
        )

    async def ListFineTuningJobEvents(
        self, request: api.ListFineTuningJobEventsRequest, context: Context
    ) -> api.ListFineTuningJobEventsResponse:
        events, through = await self._work.events(
            request.job_id, tenant_of(context), request.after_sequence, request.kinds, request.page_size
        )
        return api.ListFineTuningJobEventsResponse(events=events, through_sequence=through)

    async def ListCheckpoints(
        self, request: api.ListCheckpointsRequest, context: Context
    ) -> api.ListCheckpointsResponse:
        query = (
            select(SavedCheckpoint)
            .where(SavedCheckpoint.work_id == request.job_id, col(SavedCheckpoint.pruned).is_(False))
            .order_by(col(SavedCheckpoint.step).desc(), col(SavedCheckpoint.sequence).desc())
        )
        async with self._database.read() as session:
            await self._work.find(session, request.job_id, tenant_of(context))
            rows = (await session.exec(query)).all()
        return api.ListCheckpointsResponse(checkpoints=[views.checkpoint(row) for row in rows])

    async def GetMetrics(self, request: api.GetMetricsRequest, context: Context) -> api.GetMetricsResponse:
        max_points = request.max_points or 10_000
        if not 2 <= max_points <= 100_000:
            raise InvalidArgument(
                "INVALID_MAX_POINTS",
                f"max_points is {max_points}; it must be from 2 to 100,000.",
                [Violation("max_points", "must be from 2 to 100,000; 0 means 10,000")],
            )
        if len(request.names) > _MAX_SERIES:
            allowed = f"at most {_MAX_SERIES} are allowed. Leave it empty for all series."
            problem = f"names has {len(request.names)} entries; {allowed}"
            raise InvalidArgument("TOO_MANY_NAMES", problem, [Violation("names", problem)])
        async with self._database.read() as session:
            await self._work.find(session, request.job_id, tenant_of(context))
            return api.GetMetricsResponse(series=await read_series(session, request.job_id, request.names, max_points))

    async def _verb(self, job_id: str, context: Context, verb: Callable[[Decision], None]) -> FineTuningJob:
        async with self._work.ledger.decide(job_id, tenant_of(context), FINE_TUNING_JOB) as decision:
            verb(decision)
            return (await _messages(decision.session, [decision.work]))[0]

    def _checked(self, tenant: str, spec: FineTuningJobSpec, digest: str, start: FoundStart | None) -> Work:
        """Returns the row of a job with this spec. Raises what is wrong with the spec."""
        config = check_spec(start.spec, self._catalogue, start.source) if start else check_spec(spec, self._catalogue)
        merged = config_to_spec(config)
        check_job_addresses(merged, self._addresses)
        moment = now()
        return Work(
            id=new_id(FINE_TUNING_JOB.prefix),
            tenant=tenant,
            kind=FINE_TUNING_JOB.name,
            request_sha256=digest,
            spec=spec.SerializeToString(),
            merged_spec=merged.SerializeToString(),
            start_job_id=start.job_id if start else None,
            start=start.message.SerializeToString() if start else None,
            labels=dict(spec.labels),
            pool=config.resources.pool,
            priority=config.priority,
            max_attempts=config.max_attempts,
            state="JOB_STATE_VALIDATING",
            stage=FINE_TUNING_JOB.plan[0],
            create_time=moment,
            update_time=moment,
        )

    async def _dry_run(self, job: Work, spec: FineTuningJobSpec, context: Context) -> api.CreateFineTuningJobResponse:
        found = await self._preflights.ask(PreflightFineTuningJobRequest(spec=spec), context)
        refuse_as_reported(found.report)
        job.id = ""
        would_be = views.job(job)
        would_be.resolved_spec.CopyFrom(found.resolved_spec)
        would_be.resolutions.extend(found.resolutions)
        would_be.preflight.CopyFrom(found.result)
        return api.CreateFineTuningJobResponse(fine_tuning_job=would_be, report=found.report)

    async def _message(self, job: Work) -> FineTuningJob:
        async with self._database.read() as session:
            return (await _messages(session, [job]))[0]


def add_to_server(servicer: FineTuning, server: Any) -> None:
    """Registers the servicer; WatchFineTuningJob yields serialised responses."""
    service = api.DESCRIPTOR.services_by_name["FineTuningService"]
    add_with_byte_stream(service, "WatchFineTuningJob", add_FineTuningServiceServicer_to_server, servicer, server)


async def _messages(session: AsyncSession, jobs: Sequence[Work]) -> list[FineTuningJob]:
    # Without the results themselves, which are large.
    query = select(SavedResult).options(defer(col(SavedResult.result)))  # type: ignore[arg-type]
    query = query.where(col(SavedResult.work_id).in_([job.id for job in jobs]))
    left = {(row.work_id, row.kind): row for row in (await session.exec(query.order_by(SavedResult.id))).all()}
    made = []
    for job in jobs:
        export = left.get((job.id, EXPORT.name))
        export_id = "" if export is None else export.id
        made.append(views.job(job, evaluation=left.get((job.id, EVALUATION.name)), export_id=export_id))
    return made


def _check_labels(labels: Mapping[str, str]) -> None:
    wrong = [key for key in labels if not re.fullmatch(_LABEL_KEY, key)]
    if len(labels) > _MAX_LABELS:
        problem = f"labels has {len(labels)} entries; at most {_MAX_LABELS} are allowed."
    elif wrong:
        problem = f"labels has the key {wrong[0][:80]!r}; a key must match {_LABEL_KEY}."
    else:
        return
    raise InvalidArgument("INVALID_LABELS", problem, [Violation("labels", problem)])
