"""The audit log: one row for each call of a method that names its resource."""

from __future__ import annotations

from typing import Any

import grpc

from chassis.error_protocols import CallerFault, SystemFault
from chassis.errors import ServiceError, from_caller_fault, from_system_fault
from chassis.server.access_policy import RESPONSE, Policy
from gateway.access.callers import Caller
from gateway.identifiers import new_id
from gateway.sql.database import Database
from gateway.sql.tables import AuditRow, now

_MAX_ID = 200
"""Longer ids name nothing that exists."""


class AuditLog:
    """Writes entries. A call is answered only after its entry was written."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(
        self, policy: Policy, caller: Caller, address: str, request: Any, response: Any, status: str
    ) -> None:
        """Writes the entry of a call. `response` is None if it has failed; `request` may be a stream."""
        row = AuditRow(
            id=new_id("audit"),
            time=now(),
            tenant=caller.tenant,
            key_id=caller.key_id,
            subject=caller.subject,
            address=address,
            method=policy.method,
            # What is no valid name may be anything, also a secret in the wrong field.
            resource="" if status == grpc.StatusCode.INVALID_ARGUMENT.name else _resource(policy, request, response),
            request_id=_printable(getattr(request, "request_id", "")),
            status=status,
        )
        async with self._database.write() as session:
            session.add(row)


def status_of(failure: BaseException) -> str:
    """Returns the name of the gRPC status that an exception becomes."""
    if isinstance(failure, ServiceError):
        return failure.code.name
    if isinstance(failure, grpc.aio.AioRpcError):
        return failure.code().name
    if isinstance(failure, CallerFault):
        return from_caller_fault(failure).code.name
    if isinstance(failure, SystemFault):
        return from_system_fault(failure).code.name
    return (grpc.StatusCode.INTERNAL if isinstance(failure, Exception) else grpc.StatusCode.CANCELLED).name


def _resource(policy: Policy, request: Any, response: Any) -> str:
    path = policy.resource
    value = response if path.startswith(RESPONSE) else request
    for name in path.removeprefix(RESPONSE).split("."):
        value = getattr(value, name, None)
    return _printable(value)


def _printable(value: object) -> str:
    text = value if isinstance(value, str) else ""
    return "".join(c if c.isprintable() else "?" for c in text[:_MAX_ID])
