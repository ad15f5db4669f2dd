"""IntegrationService: webhooks and trackers that follow jobs."""

from typing import Any

import grpc
from sqlalchemy import func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Violation
from engine.config.integrations import MAX_INTEGRATIONS
from engine.config.job import integration_config
from engine.config.spec_proto import integration_to_spec, spec_to_dict
from finetuneflow.v1 import integration_service_pb2 as api
from finetuneflow.v1.fine_tuning_job_spec_pb2 import IntegrationSpec
from finetuneflow.v1.integration_pb2 import DeliveryAttempt
from finetuneflow.v1.integration_service_pb2_grpc import IntegrationServiceServicer
from gateway import views
from gateway.access.callers import tenant_of
from gateway.integrations import check_addresses, delivery_of, integration
from gateway.outbound_addresses import AddressPolicy
from gateway.paging import bad_token, page_of
from gateway.secret_store import SecretStore
from gateway.specs import check_secrets, check_text, integration_secrets
from gateway.sql.database import Database
from gateway.sql.tables import Delivery, DeliveryAttemptRow, Work, now
from gateway.webhook_key import check_webhook_keys
from gateway.work.kinds import FINE_TUNING_JOB, no_such

Context = grpc.aio.ServicerContext[Any, Any]

_MAX_REQUEST_ID = 128


class Integrations(IntegrationServiceServicer):
    """Served by the gateway. The delivery processes read the same rows."""

    def __init__(self, database: Database, addresses: AddressPolicy, secrets: SecretStore) -> None:
        self._database, self._addresses, self._secrets = database, addresses, secrets

    async def CreateIntegration(
        self, request: api.CreateIntegrationRequest, context: Context
    ) -> api.CreateIntegrationResponse:
        tenant = tenant_of(context)
        spec = self._checked(request)
        await check_webhook_keys(self._secrets, tenant, {"spec": spec})
        async with self._database.write() as session:
            # Locked, so that the job is not deleted at the same time, and that two calls count one after the other.
            await _job(session, request.job_id, tenant, lock=True)
            row = await _earlier(session, request, spec)
            if row is None:
                await check_secrets(session, tenant, integration_secrets(spec, "spec"))
                number = select(func.count()).where(Delivery.work_id == request.job_id)
                if (await session.exec(number)).one() >= MAX_INTEGRATIONS:
                    raise FailedPrecondition(
                        "TOO_MANY_INTEGRATIONS",
                        f"Job {request.job_id} has {MAX_INTEGRATIONS} integrations; delete one first.",
                    )
                row = delivery_of(tenant, request.job_id, spec, request.request_id)
                session.add(row)
        return api.CreateIntegrationResponse(integration=integration(row))

    async def ListIntegrations(
        self, request: api.ListIntegrationsRequest, context: Context
    ) -> api.ListIntegrationsResponse:
        page = page_of(request, "integrations", request.job_id)
        query = select(Delivery).where(Delivery.work_id == request.job_id, Delivery.id > page.after)
        async with self._database.read() as session:
            await _job(session, request.job_id, tenant_of(context))
            rows = (await session.exec(query.order_by(col(Delivery.id)).limit(page.limit))).all()
        kept, token = page.cut(rows, lambda row: row.id)
        return api.ListIntegrationsResponse(integrations=map(integration, kept), next_page_token=token)

    async def RetryIntegration(
        self, request: api.RetryIntegrationRequest, context: Context
    ) -> api.RetryIntegrationResponse:
        async with self._database.write() as session:
            row = await _find(session, request.integration_id, tenant_of(context), lock=True)
            if row.state in ("INTEGRATION_STATE_FAILED", "INTEGRATION_STATE_RETRYING"):
                row.state, row.failures, row.end_time = "INTEGRATION_STATE_RETRYING", 0, None
                # A process that waits for its next try no longer holds it, and any takes it at once.
                row.holder, row.update_time = "", now()
                session.add(row)
        return api.RetryIntegrationResponse(integration=integration(row))

    async def DeleteIntegration(
        self, request: api.DeleteIntegrationRequest, context: Context
    ) -> api.DeleteIntegrationResponse:
        async with self._database.write() as session:
            await session.delete(await _find(session, request.integration_id, tenant_of(context), lock=True))
        return api.DeleteIntegrationResponse()

    async def ListDeliveryAttempts(
        self, request: api.ListDeliveryAttemptsRequest, context: Context
    ) -> api.ListDeliveryAttemptsResponse:
        page = page_of(request, "delivery_attempts", request.integration_id)
        query = select(DeliveryAttemptRow).where(DeliveryAttemptRow.delivery_id == request.integration_id)
        if page.after:
            if not page.after.isdecimal() or len(page.after) > 18:
                raise bad_token("it is not the next_page_token of an earlier answer")
            query = query.where(DeliveryAttemptRow.number < int(page.after))
        async with self._database.read() as session:
            await _find(session, request.integration_id, tenant_of(context))
            rows = (await session.exec(query.order_by(col(DeliveryAttemptRow.number).desc()).limit(page.limit))).all()
        kept, token = page.cut(rows, lambda row: str(row.number))
        return api.ListDeliveryAttemptsResponse(attempts=map(_attempt, kept), next_page_token=token)

    def _checked(self, request: api.CreateIntegrationRequest) -> IntegrationSpec:
        """Returns the settings with their defaults."""
        check_text(request)
        if len(request.request_id) > _MAX_REQUEST_ID:
            problem = f"at most {_MAX_REQUEST_ID} characters"
            raise InvalidArgument(
                "INVALID_REQUEST_ID", f"request_id is longer: {problem}.", [Violation("request_id", problem)]
            )
        config = integration_config(spec_to_dict(request.spec))
        spec = integration_to_spec(config)
        check_addresses({"spec": spec}, self._addresses)
        return spec


async def _job(session: AsyncSession, job_id: str, tenant: str, *, lock: bool = False) -> Work:
    query = select(Work).where(Work.id == job_id, Work.tenant == tenant, Work.kind == FINE_TUNING_JOB.name)
    job = (await session.exec(query.with_for_update() if lock else query)).one_or_none()
    if job is None or (lock and job.deleting):
        raise no_such(FINE_TUNING_JOB, job_id)
    return job


async def _earlier(
    session: AsyncSession, request: api.CreateIntegrationRequest, spec: IntegrationSpec
) -> Delivery | None:
    """Returns the integration that an earlier call with this request_id created."""
    if not request.request_id:
        return None
    query = select(Delivery).where(Delivery.work_id == request.job_id, Delivery.request_id == request.request_id)
    row = (await session.exec(query)).one_or_none()
    if row is not None and IntegrationSpec.FromString(row.spec) != spec:
        raise AlreadyExists(
            "REQUEST_ID_REUSED",
            f"request_id {request.request_id!r} already created integration {row.id} from another request; use a new "
            "request_id.",
            metadata={"integration_id": row.id},
        )
    return row


async def _find(session: AsyncSession, integration_id: str, tenant: str, *, lock: bool = False) -> Delivery:
    query = select(Delivery).where(Delivery.id == integration_id, Delivery.tenant == tenant)
    row = (await session.exec(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise NotFound("INTEGRATION_NOT_FOUND", f"There is no integration {integration_id!r}.")
    return row


def _attempt(row: DeliveryAttemptRow) -> DeliveryAttempt:
    return DeliveryAttempt(
        number=row.number,
        first_sequence=row.first_sequence,
        last_sequence=row.last_sequence,
        time=views.timestamp(row.time),
        duration_seconds=row.duration_seconds,
        http_status=row.http_status,
        error=row.error,
    )
