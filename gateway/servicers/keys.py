"""KeyService: API keys. Operators manage all; other callers see, create and revoke their own."""

from typing import Any

import grpc
from sqlalchemy.sql.elements import ColumnElement
from sqlmodel import col, or_, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import InvalidArgument, NotFound, PermissionDenied, Violation
from finetuneflow.v1 import key_service_pb2 as api
from finetuneflow.v1.access_pb2 import Role
from finetuneflow.v1.api_key_pb2 import ApiKey
from finetuneflow.v1.key_service_pb2_grpc import KeyServiceServicer
from gateway import views
from gateway.access.authentication import key_revoked
from gateway.access.callers import Caller, caller_of
from gateway.access.keys import digest, new_token
from gateway.paging import page_of
from gateway.quotas import DEFAULT_QUOTAS, Quotas
from gateway.servicers.tenants import check_display_name, find_tenant
from gateway.sql.database import Database
from gateway.sql.tables import ApiKeyRow, now
from gateway.timestamps import microseconds

Context = grpc.aio.ServicerContext[Any, Any]


class Keys(KeyServiceServicer):
    """Served by the gateway."""

    def __init__(self, database: Database, quotas: Quotas = DEFAULT_QUOTAS) -> None:
        self._database, self._quotas = database, quotas

    async def GetCaller(self, request: api.GetCallerRequest, context: Context) -> api.GetCallerResponse:
        caller = caller_of(context)
        async with self._database.read() as session:
            row = await session.get(ApiKeyRow, caller.key_id) if caller.key_id else None
        return api.GetCallerResponse(
            tenant=caller.tenant,
            role=Role.Name(caller.role),
            key=_message(row) if row else None,
            subject=caller.subject,
        )

    async def CreateKey(self, request: api.CreateKeyRequest, context: Context) -> api.CreateKeyResponse:
        caller = caller_of(context)
        check_display_name(request.display_name)
        key_id, token = new_token()
        row = ApiKeyRow(
            id=key_id,
            tenant=request.tenant or caller.tenant,
            role=_role(request, caller),
            display_name=request.display_name,
            secret_sha256=digest(token),
            created_by=caller.key_id,
            # A stolen key must not leave others behind when it is revoked.
            root_id=key_id if caller.is_operator else caller.key_id,
            create_time=now(),
            expire_time=_expire_time(request, caller),
        )
        _check_allowed(row, caller)
        async with self._database.write() as session:
            await find_tenant(session, row.tenant)
            # A gateway believes a key for two seconds: one that is revoked meanwhile must leave none behind.
            own = await session.get(ApiKeyRow, caller.key_id, with_for_update=True) if caller.key_id else None
            if own is not None and own.revoke_time is not None:
                raise key_revoked()
            await self._quotas.check_new_key(session, row.tenant)
            session.add(row)
        return api.CreateKeyResponse(key=_message(row), token=token)

    async def ListKeys(self, request: api.ListKeysRequest, context: Context) -> api.ListKeysResponse:
        caller = caller_of(context)
        page = page_of(request, "keys", request.tenant, str(request.include_ended))
        query = select(ApiKeyRow).where(*_visible(caller))
        if request.tenant:
            query = query.where(ApiKeyRow.tenant == request.tenant)
        if not request.include_ended:
            lasting = or_(col(ApiKeyRow.expire_time).is_(None), col(ApiKeyRow.expire_time) > now())
            query = query.where(col(ApiKeyRow.revoke_time).is_(None), lasting)
        # Two keys of one microsecond are ordered by id, which is random.
        order = (col(ApiKeyRow.create_time), col(ApiKeyRow.id))
        if page.after:
            created, _, after = page.after.partition(" ")
            later = col(ApiKeyRow.create_time) > int(created)
            query = query.where(or_(later, (col(ApiKeyRow.create_time) == int(created)) & (col(ApiKeyRow.id) > after)))
        async with self._database.read() as session:
            rows = (await session.exec(query.order_by(*order).limit(page.limit))).all()
        kept, next_token = page.cut(rows, lambda row: f"{row.create_time} {row.id}")
        return api.ListKeysResponse(keys=map(_message, kept), next_page_token=next_token)

    async def RevokeKey(self, request: api.RevokeKeyRequest, context: Context) -> api.RevokeKeyResponse:
        caller = caller_of(context)
        async with self._database.write() as session:
            # Locked, so that a key that it creates at this moment is seen below.
            await self._find(session, request.key_id, caller, lock=True)
            ended = or_(ApiKeyRow.id == request.key_id, ApiKeyRow.root_id == request.key_id)
            revoke = update(ApiKeyRow).where(ended, col(ApiKeyRow.revoke_time).is_(None))
            await session.exec(revoke.values(revoke_time=now()))
        async with self._database.read() as session:
            return api.RevokeKeyResponse(key=_message(await self._find(session, request.key_id, caller)))

    async def _find(self, session: AsyncSession, key_id: str, caller: Caller, *, lock: bool = False) -> ApiKeyRow:
        query = select(ApiKeyRow).where(ApiKeyRow.id == key_id, *_visible(caller))
        row = (await session.exec(query.with_for_update() if lock else query)).one_or_none()
        if row is None:
            raise NotFound(
                "KEY_NOT_FOUND", f"There is no key {key_id!r}, or it is not yours. `ftf keys list` has yours."
            )
        return row


def _visible(caller: Caller) -> list[ColumnElement[bool]]:
    if caller.is_operator:
        return []
    own = or_(col(ApiKeyRow.id) == caller.key_id, col(ApiKeyRow.created_by) == caller.key_id)
    # A caller with a token of an identity provider has no key.
    return [own, col(ApiKeyRow.id) != ""] if caller.key_id else [col(ApiKeyRow.id) == ""]


def _role(request: api.CreateKeyRequest, caller: Caller) -> int:
    if request.role not in Role.values():
        problem = f"{request.role} is not a role; roles: READER, MEMBER, OPERATOR."
        raise InvalidArgument("INVALID_REQUEST", problem, [Violation("role", problem)])
    return request.role or min(Role.ROLE_MEMBER, caller.role)


def _expire_time(request: api.CreateKeyRequest, caller: Caller) -> int | None:
    # An operator's keys outlive the key that made them, as they do when that is revoked.
    latest = None if caller.is_operator else caller.expire_time
    if not request.HasField("expire_time"):
        return latest
    time = microseconds(request.expire_time, "expire_time")
    if time <= now():
        problem = "is in the past"
    elif latest is not None and time > latest:
        problem = "is later than the end of your own key"
    else:
        return time
    raise InvalidArgument("INVALID_REQUEST", f"expire_time {problem}.", [Violation("expire_time", problem)])


def _check_allowed(row: ApiKeyRow, caller: Caller) -> None:
    if caller.is_operator:
        return
    if row.tenant != caller.tenant:
        raise PermissionDenied("OPERATORS_ONLY", "Only operators create keys for another tenant.")
    if row.role > caller.role:
        raise PermissionDenied("OPERATORS_ONLY", "Only operators create keys with a higher role than their own.")
    if not caller.key_id:
        raise PermissionDenied("OPERATORS_ONLY", "A caller of an identity provider creates no keys; ask an operator.")
    if caller.root_key_id != caller.key_id:
        message = (
            "Your key was created by another member's key, so it creates none itself; use that key, or ask an operator."
        )
        raise PermissionDenied("OPERATORS_ONLY", message)


def _message(row: ApiKeyRow) -> ApiKey:
    times = {
        name: views.timestamp(value)
        for name in ("create_time", "expire_time", "revoke_time", "last_use_time")
        if (value := getattr(row, name)) is not None
    }
    return ApiKey(
        id=row.id,
        tenant=row.tenant,
        role=Role.Name(row.role),
        display_name=row.display_name,
        created_by=row.created_by,
        **times,
    )
