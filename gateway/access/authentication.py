"""Finds out who calls: the key or token in a call's metadata, and whether it still holds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy.exc import DBAPIError
from sqlmodel import col, select, update

from chassis.errors import ResourceExhausted, ServiceError, Unauthenticated
from gateway.access import keys
from gateway.access.callers import Caller
from gateway.access.failures import FailureLimit
from gateway.access.identity_provider import IdentityProvider
from gateway.sql.database import Database
from gateway.sql.database_errors import DatabaseUnavailable
from gateway.sql.tables import ApiKeyRow, TenantRow, now

_log = logging.getLogger(__name__)

CHECK_SECONDS: Final = 2.0
"""Time for which a key that was found in SQL is believed, and interval at which the callers of streams are checked."""
_LAST_USE_SECONDS: Final = 60.0
_MAX_BELIEVED: Final = 10_000
_MAX_WAITING: Final = 100


@dataclass(frozen=True)
class _Believed:
    caller: Caller
    until: float


class _Stream:
    """A running stream, which ends with its caller's credentials."""

    def __init__(self, caller: Caller, task: asyncio.Task[object]) -> None:
        self.caller = caller
        self.ended: ServiceError | None = None
        self._task = task

    def end(self, error: ServiceError) -> None:
        if self.ended is None:
            self.ended = error
            self._task.cancel()


class Authenticator:
    """Authenticates callers. `run` ends the streams of those whose credentials no longer hold."""

    def __init__(
        self, database: Database, provider: IdentityProvider | None = None, *, failures_per_minute: int = 20
    ) -> None:
        self._database = database
        self._provider = provider
        self._failures = FailureLimit(failures_per_minute)
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._believed: dict[str, _Believed] = {}
        self._streams: set[_Stream] = set()
        self._used: set[str] = set()

    async def caller(self, authorization: str, address: str) -> Caller:
        """Returns the caller of a call whose metadata has this `authorization`, "" for none.

        Raises Unauthenticated, and ResourceExhausted after too many failures from `address`.
        """
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        digest = keys.digest(token)
        bearer = scheme.lower() == "bearer"
        believed = self._believed.get(digest)
        if bearer and believed is not None and time.monotonic() < believed.until:
            _check_expiry(believed.caller)
            return believed.caller
        if self._failures.reached(address):
            return await self._caller_in_turn(token if bearer else "", digest)
        try:
            caller = await self._checked(token if bearer else "", digest)
        except Unauthenticated as error:
            self._failures.add(address)
            # The id of a key is no secret; the rest of it is.
            _log.warning("authentication failed from %s: %s (key %s)", address, error.reason, keys.id_of(token) or "?")
            raise
        self._believe(digest, caller)
        return caller

    async def _caller_in_turn(self, token: str, digest: str) -> Caller:
        """Checks credentials from addresses with many failures one at a time: wrong ones cost little, and do not lock
        out others of their address. Raises ResourceExhausted for wrong ones, and if too many wait."""
        refused = ResourceExhausted(
            "TOO_MANY_FAILURES",
            "Too many calls from your address had wrong credentials; correct the key and try again in a minute.",
        )
        if self._waiting >= _MAX_WAITING:
            raise refused
        self._waiting += 1
        try:
            async with self._turn:
                caller = await self._checked(token, digest)
        except Unauthenticated:
            raise refused from None
        finally:
            self._waiting -= 1
        self._believe(digest, caller)
        return caller

    async def _checked(self, token: str, digest: str) -> Caller:
        if not token:
            raise Unauthenticated(
                "NO_CREDENTIALS",
                "The call has no credentials. Run `ftf login`, or set FTF_TOKEN to an API key; operators make one "
                "with `ftf keys create`. On the machine of `ftf up`, its user's clients find one.",
            )
        if token.startswith(keys.PREFIX) or self._provider is None:
            return await self._caller_of_key(token, digest)
        caller = await self._provider.caller(token)
        await self._check_tenant(caller.tenant)
        return caller

    @contextmanager
    def stream(self, caller: Caller) -> Iterator[None]:
        """Ends the running task with Unauthenticated when the caller's credentials no longer hold."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        stream = _Stream(caller, task)
        self._streams.add(stream)
        try:
            yield
        except asyncio.CancelledError:
            if stream.ended is None:
                raise
            task.uncancel()
            raise stream.ended from None
        finally:
            self._streams.discard(stream)

    async def run(self) -> None:
        """Until cancelled."""
        last_use = time.monotonic()
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self._check_streams()
                if time.monotonic() - last_use >= _LAST_USE_SECONDS:
                    last_use = time.monotonic()
                    await self._write_last_use()
            except (DBAPIError, DatabaseUnavailable) as error:
                _log.warning("the callers of streams can't be checked: %s", error)

    async def _caller_of_key(self, token: str, digest: str) -> Caller:
        key_id = keys.id_of(token)
        async with self._database.read() as session:
            row = await session.get(ApiKeyRow, key_id) if key_id else None
            tenant = await session.get(TenantRow, row.tenant) if row else None
        if row is None or row.secret_sha256 != digest:
            raise Unauthenticated("INVALID_KEY", "This API key is not known here. Ask an operator for one.")
        caller = Caller(row.tenant, row.role, row.id, row.root_id, expire_time=row.expire_time)
        if row.revoke_time is not None:
            raise key_revoked()
        _check_expiry(caller)
        if tenant is None or tenant.disabled:
            raise _disabled(row.tenant)
        return caller

    async def _check_tenant(self, name: str) -> None:
        async with self._database.read() as session:
            tenant = await session.get(TenantRow, name)
        if tenant is None or tenant.disabled:
            raise _disabled(name)

    def _believe(self, digest: str, caller: Caller) -> None:
        self._believed.pop(digest, None)
        if len(self._believed) >= _MAX_BELIEVED:
            self._believed.pop(next(iter(self._believed)))
        self._believed[digest] = _Believed(caller, time.monotonic() + CHECK_SECONDS)
        if caller.key_id:
            self._used.add(caller.key_id)

    async def _check_streams(self) -> None:
        if not self._streams:
            return
        callers = {stream.caller for stream in self._streams}
        async with self._database.read() as session:
            ids = {caller.key_id for caller in callers if caller.key_id}
            revoked = set(
                await session.exec(
                    select(ApiKeyRow.id).where(col(ApiKeyRow.id).in_(ids), col(ApiKeyRow.revoke_time).is_not(None))
                )
            )
            names = {caller.tenant for caller in callers}
            disabled = set(
                await session.exec(
                    select(TenantRow.name).where(col(TenantRow.name).in_(names), col(TenantRow.disabled).is_(True))
                )
            )
        for stream in tuple(self._streams):
            if stream.caller.key_id in revoked:
                stream.end(key_revoked())
            elif stream.caller.tenant in disabled:
                stream.end(_disabled(stream.caller.tenant))
            else:
                try:
                    _check_expiry(stream.caller)
                except Unauthenticated as error:
                    stream.end(error)

    async def _write_last_use(self) -> None:
        used, self._used = self._used, set()
        if used:
            async with self._database.write() as session:
                await session.exec(update(ApiKeyRow).where(col(ApiKeyRow.id).in_(used)).values(last_use_time=now()))


def _check_expiry(caller: Caller) -> None:
    if caller.expire_time is not None and caller.expire_time <= now():
        raise Unauthenticated("KEY_EXPIRED", "Your credentials have expired. Ask an operator for a new key.")


def key_revoked() -> Unauthenticated:
    """Returns the error for a key that was revoked."""
    return Unauthenticated("KEY_REVOKED", "This API key was revoked. Ask an operator for a new one.")


def _disabled(tenant: str) -> Unauthenticated:
    return Unauthenticated("TENANT_DISABLED", f"The tenant {tenant!r} does not exist or is disabled. Ask an operator.")
