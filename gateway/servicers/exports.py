"""ExportService: packages that stage 4 of jobs made."""

from typing import Any

import grpc
from sqlmodel import col, select

from chassis.errors import NotFound
from finetuneflow.v1 import export_service_pb2 as api
from finetuneflow.v1.export_pb2 import Export
from finetuneflow.v1.export_service_pb2_grpc import ExportServiceServicer
from finetuneflow.v1.fine_tuning_job_spec_pb2 import ExportFormat, FineTuningJobSpec
from finetuneflow.v1.stage_result_pb2 import ExportResult
from gateway import views
from gateway.paging import page_of
from gateway.sql.database import Database
from gateway.sql.tables import Job, JobExport
from gateway.tenancy import tenant_of

Context = grpc.aio.ServicerContext[Any, Any]


class Exports(ExportServiceServicer):
    """Served by the gateway. CreateExport answers UNIMPLEMENTED through the generated base."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def GetExport(self, request: api.GetExportRequest, context: Context) -> api.GetExportResponse:
        query = (
            select(JobExport, Job)
            .join(Job)
            .where(JobExport.id == request.export_id, JobExport.tenant == tenant_of(context))
        )
        async with self._database.read() as session:
            found = (await session.exec(query)).one_or_none()
        if found is None:
            raise NotFound("EXPORT_NOT_FOUND", f"there is no export {request.export_id!r}")
        return api.GetExportResponse(export=_export(*found))

    async def ListExports(self, request: api.ListExportsRequest, context: Context) -> api.ListExportsResponse:
        page = page_of(request, "exports", request.job_id)
        query = select(JobExport, Job).join(Job).where(JobExport.tenant == tenant_of(context))
        if request.job_id:
            query = query.where(JobExport.job_id == request.job_id)
        if page.after:
            query = query.where(col(JobExport.id) < page.after)
        async with self._database.read() as session:
            rows = (await session.exec(query.order_by(col(JobExport.id).desc()).limit(page.limit))).all()
        kept, token = page.cut(rows, lambda row: row[0].id)
        return api.ListExportsResponse(exports=[_export(*row) for row in kept], next_page_token=token)


def _export(row: JobExport, job: Job) -> Export:
    asked = FineTuningJobSpec.FromString(job.spec).export.formats
    return Export(
        id=row.id,
        job_id=row.job_id,
        # UNSPECIFIED and nothing at all both mean the adapter.
        formats=[form or ExportFormat.EXPORT_FORMAT_ADAPTER for form in asked] or [ExportFormat.EXPORT_FORMAT_ADAPTER],
        result=ExportResult.FromString(row.result),
        create_time=views.timestamp(row.create_time),
    )
