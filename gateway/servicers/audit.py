"""AuditService: the audit log, for operators."""

from typing import Any

import grpc
from sqlmodel import col, select

from finetuneflow.v1 import audit_service_pb2 as api
from finetuneflow.v1.audit_service_pb2_grpc import AuditServiceServicer
from gateway import views
from gateway.paging import page_of
from gateway.sql.database import Database
from gateway.sql.tables import AuditRow
from gateway.timestamps import microseconds

Context = grpc.aio.ServicerContext[Any, Any]


class Audit(AuditServiceServicer):
    """Served by the gateway."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ListAuditEntries(
        self, request: api.ListAuditEntriesRequest, context: Context
    ) -> api.ListAuditEntriesResponse:
        after_time = microseconds(request.after_time, "after_time") if request.HasField("after_time") else 0
        page = page_of(request, "audit", request.tenant, request.key_id, request.resource, str(after_time))
        query = select(AuditRow).where(AuditRow.id > page.after)
        for column, value in (
            (AuditRow.tenant, request.tenant),
            (AuditRow.key_id, request.key_id),
            (AuditRow.resource, request.resource),
        ):
            if value:
                query = query.where(column == value)
        if after_time:
            query = query.where(AuditRow.time >= after_time)
        async with self._database.read() as session:
            rows = (await session.exec(query.order_by(col(AuditRow.id)).limit(page.limit))).all()
        kept, token = page.cut(rows, lambda row: row.id)
        return api.ListAuditEntriesResponse(entries=map(_message, kept), next_page_token=token)


def _message(row: AuditRow) -> api.AuditEntry:
    return api.AuditEntry(
        id=row.id,
        time=views.timestamp(row.time),
        tenant=row.tenant,
        key_id=row.key_id,
        subject=row.subject,
        address=row.address,
        method=row.method,
        resource=row.resource,
        request_id=row.request_id,
        status=row.status,
    )
