"""TenantService: the owners of jobs, datasets and artifacts, for operators."""

import re
from typing import Any

import grpc
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Violation
from finetuneflow.v1 import tenant_service_pb2 as api
from finetuneflow.v1.tenant_pb2 import Tenant, TenantLimits
from finetuneflow.v1.tenant_service_pb2_grpc import TenantServiceServicer
from gateway import views
from gateway.access.callers import tenant_of
from gateway.paging import page_of
from gateway.sql.database import Database
from gateway.sql.tables import TenantRow, now

Context = grpc.aio.ServicerContext[Any, Any]

_MAX_DISPLAY_NAME = 120
_LIMITS = tuple(field.name for field in TenantLimits.DESCRIPTOR.fields)
"""Also the names of the columns."""


class Tenants(TenantServiceServicer):
    """Served by the gateway."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def CreateTenant(self, request: api.CreateTenantRequest, context: Context) -> api.CreateTenantResponse:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", request.name):
            problem = "must have 1 to 40 characters of a-z, 0-9 and -, and start with a letter"
            raise InvalidArgument("INVALID_REQUEST", f"The name {problem}.", [Violation("name", problem)])
        check_display_name(request.display_name)
        taken = AlreadyExists("TENANT_EXISTS", f"There is a tenant {request.name!r} already.")
        try:
            row = await self._insert(request, taken)
        except IntegrityError:
            # Another call has inserted it since it was looked for.
            raise taken from None
        return api.CreateTenantResponse(tenant=_message(row))

    async def _insert(self, request: api.CreateTenantRequest, taken: AlreadyExists) -> TenantRow:
        async with self._database.write() as session:
            if await session.get(TenantRow, request.name) is not None:
                raise taken
            row = TenantRow(name=request.name, display_name=request.display_name, create_time=now())
            session.add(row)
        return row

    async def GetTenant(self, request: api.GetTenantRequest, context: Context) -> api.GetTenantResponse:
        async with self._database.read() as session:
            return api.GetTenantResponse(tenant=_message(await find_tenant(session, request.name)))

    async def ListTenants(self, request: api.ListTenantsRequest, context: Context) -> api.ListTenantsResponse:
        page = page_of(request, "tenants")
        query = select(TenantRow).where(TenantRow.name > page.after).order_by(col(TenantRow.name))
        async with self._database.read() as session:
            rows = (await session.exec(query.limit(page.limit))).all()
        kept, token = page.cut(rows, lambda row: row.name)
        return api.ListTenantsResponse(tenants=map(_message, kept), next_page_token=token)

    async def UpdateTenant(self, request: api.UpdateTenantRequest, context: Context) -> api.UpdateTenantResponse:
        if request.disabled and request.name == tenant_of(context):
            message = (
                "You would lock yourself out: your key is of this tenant. Use an operator's key of another tenant."
            )
            raise FailedPrecondition("OWN_TENANT", message)
        check_display_name(request.display_name)
        _check_limits(request.limits)
        async with self._database.write() as session:
            row = await find_tenant(session, request.name)
            if request.HasField("display_name"):
                row.display_name = request.display_name
            if request.HasField("disabled"):
                row.disabled = request.disabled
            if request.HasField("limits"):
                for name in _LIMITS:
                    limit = getattr(request.limits, name) if request.limits.HasField(name) else None
                    setattr(row, name, limit)
            session.add(row)
        return api.UpdateTenantResponse(tenant=_message(row))


async def find_tenant(session: AsyncSession, name: str) -> TenantRow:
    """Returns the tenant. Raises NotFound."""
    row = await session.get(TenantRow, name)
    if row is None:
        raise NotFound("TENANT_NOT_FOUND", f"There is no tenant {name!r}.")
    return row


def check_display_name(name: str) -> None:
    """Raises InvalidArgument for a display name that is too long or cannot be printed."""
    if len(name) > _MAX_DISPLAY_NAME or not all(c.isprintable() for c in name):
        problem = f"must have at most {_MAX_DISPLAY_NAME} printable characters"
        raise InvalidArgument("INVALID_REQUEST", f"display_name {problem}.", [Violation("display_name", problem)])


def _check_limits(limits: TenantLimits) -> None:
    negative = [name for name in _LIMITS if getattr(limits, name) < 0]
    if negative:
        violations = [Violation(f"limits.{name}", "can't be negative; 0 allows none") for name in negative]
        raise InvalidArgument("INVALID_REQUEST", f"{violations[0].field} {violations[0].description}.", violations)


def _message(row: TenantRow) -> Tenant:
    limits = {name: getattr(row, name) for name in _LIMITS}
    return Tenant(
        name=row.name,
        display_name=row.display_name,
        disabled=row.disabled,
        create_time=views.timestamp(row.create_time),
        limits=TenantLimits(**{name: limit for name, limit in limits.items() if limit is not None}),
    )
