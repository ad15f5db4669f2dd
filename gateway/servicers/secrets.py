"""SecretService: secrets of the caller's tenant. No method returns a value."""

import re
from typing import Any, Final

import grpc
from sqlmodel import col, select

from chassis.errors import InvalidArgument, Violation
from engine.config.section import NAME_PATTERN
from finetuneflow.v1 import secret_service_pb2 as api
from finetuneflow.v1.fine_tuning_job_spec_pb2 import IntegrationSpec
from finetuneflow.v1.secret_pb2 import Secret
from finetuneflow.v1.secret_service_pb2_grpc import SecretServiceServicer
from gateway import views
from gateway.access.callers import tenant_of
from gateway.paging import page_of
from gateway.secret_store import SecretStore
from gateway.specs import integration_secrets
from gateway.sql.database import Database
from gateway.sql.tables import Delivery, SecretRow

Context = grpc.aio.ServicerContext[Any, Any]

_MAX_BYTES: Final = 64 << 10
_MAX_NAMED: Final = 100


class Secrets(SecretServiceServicer):
    """Served by the gateway."""

    def __init__(self, database: Database, store: SecretStore) -> None:
        self._database, self._store = database, store

    async def SetSecret(self, request: api.SetSecretRequest, context: Context) -> api.SetSecretResponse:
        value = request.value
        # The text form of a message has all fields, also those marked debug_redact: nothing that sees the request from
        # here on, such as a log, finds the value.
        request.ClearField("value")
        _check_name(request.name)
        if not 1 <= (size := len(value.encode())) <= _MAX_BYTES:
            raise _invalid("value", f"has {size:,} bytes; it must have 1 to {_MAX_BYTES:,}")
        row = await self._store.set(tenant_of(context), request.name, value)
        return api.SetSecretResponse(secret=_message(row))

    async def ListSecrets(self, request: api.ListSecretsRequest, context: Context) -> api.ListSecretsResponse:
        page = page_of(request, "secrets")
        query = select(SecretRow).where(SecretRow.tenant == tenant_of(context), SecretRow.name > page.after)
        async with self._database.read() as session:
            rows = (await session.exec(query.order_by(col(SecretRow.name)).limit(page.limit))).all()
        kept, token = page.cut(rows, lambda row: row.name)
        return api.ListSecretsResponse(secrets=map(_message, kept), next_page_token=token)

    async def DeleteSecret(self, request: api.DeleteSecretRequest, context: Context) -> api.DeleteSecretResponse:
        _check_name(request.name)
        tenant = tenant_of(context)
        await self._store.delete(tenant, request.name)
        query = select(Delivery).where(Delivery.tenant == tenant, col(Delivery.end_time).is_(None))
        async with self._database.read() as session:
            unended = (await session.exec(query.order_by(col(Delivery.id)))).all()
        specs = {row.id: IntegrationSpec.FromString(row.spec) for row in unended}
        named = [id_ for id_, spec in specs.items() if request.name in integration_secrets(spec, "").values()]
        return api.DeleteSecretResponse(integration_ids=named[:_MAX_NAMED])


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        raise _invalid("name", "must have 1 to 63 characters of a-z, 0-9, _ and -, and start with a letter")


def _invalid(field: str, problem: str) -> InvalidArgument:
    return InvalidArgument("INVALID_REQUEST", f"The {field} {problem}.", [Violation(field, problem)])


def _message(row: SecretRow) -> Secret:
    return Secret(
        name=row.name,
        create_time=views.timestamp(row.create_time),
        update_time=views.timestamp(row.update_time),
        last_use_time=views.timestamp(row.last_use_time) if row.last_use_time else None,
    )
