"""The audit log: who called what on which resource."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime

from finetuneflow.blocking import Blocking, iterating
from finetuneflow.fields import fill, timestamp
from finetuneflow.paging import paged
from finetuneflow.resources.access import AuditEntry
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import audit_service_pb2 as pb
from finetuneflow.v1 import audit_service_pb2_grpc as pb_grpc


class AsyncAudit:
    """`client.audit` of an AsyncClient."""

    def __init__(self, transport: CallPolicy) -> None:
        self._transport = transport
        self._stub = pb_grpc.AuditServiceStub(transport.channel)

    def list(
        self,
        *,
        tenant: str = "",
        key_id: str = "",
        resource: str = "",
        after_time: datetime | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[AuditEntry, None]:
        """Lists entries, oldest first. Pages are fetched as needed.

        Args:
            tenant: Lists only entries of this tenant. Default: all.
            key_id: Lists only entries of this key. Default: all.
            resource: Lists only entries about the resource with this id. Default: all.
            after_time: Lists only entries from this time on; a datetime with a time zone. Default: all.
            limit: Maximum number of entries. Default: no limit.

        Yields:
            The entries.

        Raises:
            InvalidArgument: The time has no time zone.
            PermissionDenied: The caller is no operator.
        """
        request = fill(
            pb.ListAuditEntriesRequest(),
            tenant=tenant,
            key_id=key_id,
            resource=resource,
            after_time=timestamp("after_time", after_time),
        )
        return paged(self._transport, self._stub.ListAuditEntries, request, "entries", limit, AuditEntry.from_proto)


class Audit(Blocking):
    """`client.audit`, for operators. Entries hold no contents of requests and no secrets."""

    list = iterating(AsyncAudit.list)
