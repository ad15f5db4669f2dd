"""DatasetService: uploaded files."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.artifacts import ArtifactStore
from chassis.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Violation
from chassis.failpoints import failpoint
from finetuneflow.v1 import dataset_service_pb2 as api
from finetuneflow.v1.dataset_service_pb2_grpc import DatasetServiceServicer
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from gateway import lifecycle, views
from gateway.database import Database
from gateway.identifiers import new_id
from gateway.paging import page_of
from gateway.specs import dataset_ids
from gateway.tables import Job, UploadedDataset, now
from gateway.tenancy import tenant_of
from gateway.uploads import Header, Upload, check_header
from gateway.waiting import finished, in_thread

Context = grpc.aio.ServicerContext[Any, Any]

DEFAULT_MAX_BYTES = 64 << 30


class Datasets(DatasetServiceServicer):
    """Served by the gateway. ValidateDataset and PreviewDataset answer UNIMPLEMENTED through the generated base."""

    def __init__(self, database: Database, store: ArtifactStore, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._database = database
        self._store = store
        self._max_bytes = max_bytes

    async def UploadDataset(
        self, request_iterator: AsyncIterator[api.UploadDatasetRequest], context: Context
    ) -> api.UploadDatasetResponse:
        tenant = tenant_of(context)
        header = check_header(await _first(request_iterator), self._max_bytes)
        if header.request_id and header.sha256:
            # Known before a single byte has travelled.
            async with self._database.read() as session:
                earlier = await _earlier(session, tenant, header.request_id, header.sha256)
            if earlier is not None:
                return api.UploadDatasetResponse(dataset=views.dataset(earlier))
        row = await self._receive(tenant, header, request_iterator)
        return api.UploadDatasetResponse(dataset=views.dataset(row))

    async def GetDataset(self, request: api.GetDatasetRequest, context: Context) -> api.GetDatasetResponse:
        async with self._database.read() as session:
            row = await _find(session, request.dataset_id, tenant_of(context))
        return api.GetDatasetResponse(dataset=views.dataset(row))

    async def ListDatasets(self, request: api.ListDatasetsRequest, context: Context) -> api.ListDatasetsResponse:
        page = page_of(request, "datasets")
        query = select(UploadedDataset).where(UploadedDataset.tenant == tenant_of(context))
        if page.after:
            query = query.where(col(UploadedDataset.id) < page.after)
        async with self._database.read() as session:
            rows = (await session.exec(query.order_by(col(UploadedDataset.id).desc()).limit(page.limit))).all()
        kept, token = page.cut(rows, lambda row: row.id)
        return api.ListDatasetsResponse(datasets=[views.dataset(row) for row in kept], next_page_token=token)

    async def DeleteDataset(self, request: api.DeleteDatasetRequest, context: Context) -> api.DeleteDatasetResponse:
        tenant = tenant_of(context)

        async def forget() -> None:
            async with self._database.write() as session:
                row = await _find(session, request.dataset_id, tenant, lock=True)
                await _refuse_if_used(session, row)
                await session.delete(row)
            # After the row: a file without a row is waste, a row without its file would be a lie.
            await in_thread(self._store.delete, f"{tenant}/{_folder(row.id)}")

        await finished(forget())
        return api.DeleteDatasetResponse()

    async def _receive(
        self, tenant: str, header: Header, requests: AsyncIterator[api.UploadDatasetRequest]
    ) -> UploadedDataset:
        dataset_id = new_id("ds")
        path = f"{_folder(dataset_id)}/{header.filename}"
        upload = Upload(self._store, f"{tenant}/{path}", header, self._max_bytes)
        try:
            await upload.receive(requests)
            await upload.commit()
            failpoint("dataset.stored")
            row = UploadedDataset(
                id=dataset_id,
                tenant=tenant,
                request_id=header.request_id,
                display_name=header.display_name,
                filename=header.filename,
                size_bytes=upload.size_bytes,
                sha256=upload.sha256,
                path=path,
                create_time=now(),
            )
            # A caller that left while the row is written must not make us delete the file of a row that is there.
            kept = await finished(self._record(row))
        except BaseException:
            await finished(self._clean_up(upload, tenant, dataset_id))
            raise
        if kept.id != dataset_id:
            await in_thread(self._store.delete, f"{tenant}/{_folder(dataset_id)}")
        return kept

    async def _clean_up(self, upload: Upload, tenant: str, dataset_id: str) -> None:
        await upload.abort()
        if not upload.committed:
            return
        # A write that failed may have been done all the same, when the connection broke with its answer.
        async with self._database.read() as session:
            recorded = await session.get(UploadedDataset, dataset_id)
        if recorded is None:
            await in_thread(self._store.delete, f"{tenant}/{_folder(dataset_id)}")

    async def _record(self, row: UploadedDataset) -> UploadedDataset:
        """Inserts the row, or returns the one that the same request_id made before."""
        try:
            async with self._database.write() as session:
                earlier = await _earlier(session, row.tenant, row.request_id, row.sha256)
                if earlier is None:
                    session.add(row)
                return earlier or row
        except IntegrityError:
            # On PostgreSQL two uploads with one request_id may both have looked before either inserted.
            async with self._database.read() as session:
                earlier = await _earlier(session, row.tenant, row.request_id, row.sha256)
            if earlier is None:
                raise
            return earlier


def _folder(dataset_id: str) -> str:
    return f"datasets/{dataset_id}"


async def _first(requests: AsyncIterator[api.UploadDatasetRequest]) -> api.UploadDatasetHeader:
    async for request in requests:
        if request.WhichOneof("content") == "header":
            return request.header
        break
    message = "the first message must carry the header"
    raise InvalidArgument("HEADER_EXPECTED", message, [Violation("header", message)])


async def _find(session: AsyncSession, dataset_id: str, tenant: str, *, lock: bool = False) -> UploadedDataset:
    query = select(UploadedDataset).where(UploadedDataset.id == dataset_id, UploadedDataset.tenant == tenant)
    row = (await session.exec(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise NotFound("DATASET_NOT_FOUND", f"there is no dataset {dataset_id!r}")
    return row


async def _earlier(session: AsyncSession, tenant: str, request_id: str | None, sha256: str) -> UploadedDataset | None:
    """What this request_id has made. AlreadyExists when it was made of other bytes."""
    if request_id is None:
        return None
    query = select(UploadedDataset).where(UploadedDataset.tenant == tenant, UploadedDataset.request_id == request_id)
    row = (await session.exec(query)).one_or_none()
    if row is not None and row.sha256 != sha256:
        raise AlreadyExists(
            "REQUEST_ID_REUSED",
            f"request_id {request_id!r} already made dataset {row.id} of other bytes; use a new request_id",
            metadata={"dataset_id": row.id},
        )
    return row


async def _refuse_if_used(session: AsyncSession, row: UploadedDataset) -> None:
    query = select(Job.id, Job.spec).where(Job.tenant == row.tenant, col(Job.state).not_in(lifecycle.TERMINAL))
    users = [
        job_id
        for job_id, spec in (await session.exec(query.order_by(Job.id))).all()
        if row.id in dataset_ids(FineTuningJobSpec.FromString(spec))
    ]
    if users:
        more = f" and {len(users) - 1} more" if len(users) > 1 else ""
        raise FailedPrecondition(
            "DATASET_IN_USE",
            f"dataset {row.id} is used by job {users[0]}{more}; wait for its end or cancel it",
            metadata={"job_id": users[0]},
        )
