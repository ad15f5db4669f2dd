"""The audit log, for operators."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime

from finetuneflow.blocking import Blocking, iterating
from finetuneflow.fields import fill
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
        tenant: str | None = None,
        key_id: str | None = None,
        resource: str | None = None,
        after_time: datetime | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[AuditEntry, None]:
        """Lists calls that changed something, and downloads, oldest first.

        Args:
            tenant: Lists only calls of this tenant. Default: all.
            key_id: Lists only calls with this key. Default: all.
            resource: Lists only calls about this resource. Default: all.
            after_time: Lists only calls from this time on, with a time zone. Default: all.
            limit: Maximum number of entries. Default: no limit.

        Yields:
            The entries.
        """
        request = fill(pb.ListAuditEntriesRequest(), tenant=tenant, key_id=key_id, resource=resource)
        if after_time is not None:
            request.after_time.FromDatetime(after_time)
        return paged(self._transport, self._stub.ListAuditEntries, request, "entries", limit, AuditEntry.from_proto)


class Audit(Blocking):
    """`client.audit`."""

    list = iterating(AsyncAudit.list)
