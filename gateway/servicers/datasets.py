"""DatasetService: uploaded files."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Violation,
)
from chassis.failpoints import failpoint
from chassis.store.artifact_store import ArtifactStore
from engine.config.hub_reference import is_hub_reference
from finetuneflow.v1 import dataset_service_pb2 as api
from finetuneflow.v1.dataset_service_pb2_grpc import (
    DatasetServiceServicer,
    DatasetServiceStub,
    add_DatasetServiceServicer_to_server,
)
from finetuneflow.v1.event_pb2 import ConfigResolved
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from finetuneflow.v1.work_pb2 import Comparison
from gateway import views
from gateway.access.callers import tenant_of
from gateway.identifiers import new_id
from gateway.paging import page_of
from gateway.passthrough import Method, Passthrough
from gateway.quotas import DEFAULT_QUOTAS, Quotas
from gateway.servicers.handlers import add_with
from gateway.specs import dataset_ids
from gateway.sql.database import Database
from gateway.sql.tables import UploadedDataset, Work, now
from gateway.uncancellable import finished, in_thread
from gateway.uploads import (
    Header,
    Message,
    Upload,
    UploadLimits,
    check_header,
    is_sha256,
    read_message,
    received,
    upload_key,
)
from gateway.work import lifecycle
from gateway.work.kinds import FINE_TUNING_JOB, KINDS

Context = grpc.aio.ServicerContext[Any, Any]


class Datasets(DatasetServiceServicer):
    """Served by the gateway. ValidateDataset and PreviewDataset are a probe's answers."""

    def __init__(
        self,
        database: Database,
        store: ArtifactStore,
        limits: UploadLimits,
        passthrough: Passthrough,
        quotas: Quotas = DEFAULT_QUOTAS,
    ) -> None:
        self._database = database
        self._store = store
        self._passthrough = passthrough
        self._limits = limits
        self._quotas = quotas

    async def UploadDataset(
        self, request_iterator: AsyncIterator[Message], context: Context
    ) -> api.UploadDatasetResponse:
        """Its messages come as `read_message` makes them: see `add_to_server`."""
        tenant = tenant_of(context)
        async with aclosing(received(request_iterator, self._limits.stall_seconds)) as messages:
            header = check_header(await _read_header(messages), self._limits.max_bytes)
            # Known before a single byte has travelled.
            row = await self._completed_dataset(tenant, header) or await self._receive(tenant, header, messages)
        return api.UploadDatasetResponse(dataset=views.dataset(row))

    async def GetUpload(self, request: api.GetUploadRequest, context: Context) -> api.GetUploadResponse:
        tenant = tenant_of(context)
        _check_upload(request)
        async with self._database.read() as session:
            row = await _find_by_request_id(session, tenant, request.request_id, request.sha256.lower())
        if row is not None:
            return api.GetUploadResponse(received_bytes=row.size_bytes, dataset=views.dataset(row))
        key = upload_key(tenant, request.request_id, request.sha256)
        return api.GetUploadResponse(received_bytes=await in_thread(self._store.held_bytes, key))

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
                await refuse_if_used(session, row)
                await session.delete(row)
            # After the row: a file without a row is waste, a row without its file would be a lie.
            await in_thread(self._store.delete, f"{tenant}/{_folder(row.id)}")

        await finished(forget())
        return api.DeleteDatasetResponse()

    async def ValidateDataset(
        self, request: api.ValidateDatasetRequest, context: Context
    ) -> api.ValidateDatasetResponse:
        await self._complete(request, context)
        answer: api.ValidateDatasetResponse = await self._call_probe(
            lambda channel: DatasetServiceStub(channel).ValidateDataset, request, context
        )
        return answer

    async def PreviewDataset(self, request: api.PreviewDatasetRequest, context: Context) -> api.PreviewDatasetResponse:
        await self._complete(request, context)
        answer: api.PreviewDatasetResponse = await self._call_probe(
            lambda channel: DatasetServiceStub(channel).PreviewDataset, request, context
        )
        return answer

    async def _complete(
        self, request: api.ValidateDatasetRequest | api.PreviewDatasetRequest, context: Context
    ) -> None:
        """Puts the entry of an uploaded dataset into the request: a probe asks no database, and must not read another
        tenant's."""
        missing = [
            Violation(field, "is required")
            for field, value in (("source.dataset", request.source.dataset), ("base_model", request.base_model))
            if not value
        ]
        if missing:
            message = "; ".join(f"{violation.field} {violation.description}" for violation in missing) + "."
            raise InvalidArgument("INVALID_REQUEST", message, missing)
        request.tenant = tenant_of(context)
        request.ClearField("dataset")
        if is_hub_reference(request.source.dataset):
            return
        async with self._database.read() as session:
            row = await _find(session, request.source.dataset, request.tenant)
        request.dataset.CopyFrom(views.dataset(row))

    async def _call_probe(self, method: Method, request: object, context: Context) -> Any:
        return await self._passthrough.unary("probe", method, request, context)

    async def _completed_dataset(self, tenant: str, header: Header) -> UploadedDataset | None:
        """The dataset that this very upload has made before."""
        if not (header.request_id and header.sha256):
            return None
        async with self._database.read() as session:
            return await _find_by_request_id(session, tenant, header.request_id, header.sha256)

    async def _receive(self, tenant: str, header: Header, messages: AsyncIterator[Message | None]) -> UploadedDataset:
        async with self._database.read() as session:
            await self._quotas.check_new_dataset(session, tenant, header.size_bytes or 0)
        dataset_id = new_id("ds")
        path = f"{_folder(dataset_id)}/{header.filename}"
        upload = Upload(self._store, tenant, path, header, self._limits)
        try:
            await upload.begin()
            # The stream that held the upload until now may have completed it.
            kept = await self._completed_dataset(tenant, header)
            if kept is None:
                await upload.receive(messages)
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
                failpoint("dataset.recorded")
        except BaseException as error:
            await finished(self._end_failed_upload(upload, dataset_id, error))
            raise
        await finished(upload.end(recorded=kept.id == dataset_id, wanted=False))
        return kept

    async def _end_failed_upload(self, upload: Upload, dataset_id: str, error: BaseException) -> None:
        # Without an answer a row may be there: waste is better than a row without its file.
        recorded = upload.committed
        try:
            if upload.committed:
                # A write that failed may have been done all the same, when the connection broke with its answer.
                async with self._database.read() as session:
                    recorded = await session.get(UploadedDataset, dataset_id) is not None
        finally:
            # Bytes that are over a limit are not kept for later: interrupted uploads count against none.
            wanted = not isinstance(error, AlreadyExists | ResourceExhausted)
            await upload.end(recorded=recorded, wanted=wanted)

    async def _record(self, row: UploadedDataset) -> UploadedDataset:
        """Inserts the row, or returns the one that the same request_id made before. Raises ResourceExhausted."""
        try:
            async with self._database.write() as session:
                earlier = await _find_by_request_id(session, row.tenant, row.request_id, row.sha256)
                if earlier is None:
                    await self._quotas.check_new_dataset(session, row.tenant, row.size_bytes, lock=True)
                    session.add(row)
                return earlier or row
        except IntegrityError:
            # On PostgreSQL two uploads with one request_id may both have looked before either inserted.
            async with self._database.read() as session:
                earlier = await _find_by_request_id(session, row.tenant, row.request_id, row.sha256)
            if earlier is None:
                raise
            return earlier


def add_to_server(servicer: Datasets, server: Any) -> None:
    """Registers the servicer; the chunks of an upload are not copied into messages."""
    handler = grpc.stream_unary_rpc_method_handler(
        servicer.UploadDataset,
        request_deserializer=read_message,
        response_serializer=api.UploadDatasetResponse.SerializeToString,
    )
    service = api.DESCRIPTOR.services_by_name["DatasetService"].full_name
    add_with({"UploadDataset": handler}, service, add_DatasetServiceServicer_to_server, servicer, server)


def _folder(dataset_id: str) -> str:
    return f"datasets/{dataset_id}"


async def _read_header(messages: AsyncIterator[Message | None]) -> api.UploadDatasetHeader:
    async for message in messages:
        if message is None:
            continue
        if not isinstance(message, memoryview) and message.WhichOneof("content") == "header":
            return message.header
        break
    problem = "The first message must carry the header."
    raise InvalidArgument("HEADER_EXPECTED", problem, [Violation("header", problem)])


def _check_upload(request: api.GetUploadRequest) -> None:
    violations = []
    if not request.request_id:
        violations.append(Violation("request_id", "the request_id of the upload's header is required"))
    if request.sha256 and not is_sha256(request.sha256):
        violations.append(Violation("sha256", "must be 64 hexadecimal digits, or empty"))
    if violations:
        message = "; ".join(f"{violation.field}: {violation.description}" for violation in violations) + "."
        raise InvalidArgument("INVALID_REQUEST", message, violations)


async def _find(session: AsyncSession, dataset_id: str, tenant: str, *, lock: bool = False) -> UploadedDataset:
    query = select(UploadedDataset).where(UploadedDataset.id == dataset_id, UploadedDataset.tenant == tenant)
    row = (await session.exec(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise NotFound("DATASET_NOT_FOUND", f"There is no dataset {dataset_id!r}.")
    return row


async def _find_by_request_id(
    session: AsyncSession, tenant: str, request_id: str | None, sha256: str
) -> UploadedDataset | None:
    """Returns the dataset that this request_id created. Raises AlreadyExists if its SHA-256 differs from `sha256`,
    unless that is empty."""
    if request_id is None:
        return None
    query = select(UploadedDataset).where(UploadedDataset.tenant == tenant, UploadedDataset.request_id == request_id)
    row = (await session.exec(query)).one_or_none()
    if row is not None and sha256 and row.sha256 != sha256:
        raise AlreadyExists(
            "REQUEST_ID_REUSED",
            f"request_id {request_id!r} was already used for another file (dataset {row.id}); use a new request_id.",
            metadata={"dataset_id": row.id},
        )
    return row


def _own_data(work: Work) -> FineTuningJobSpec:
    """Returns what an evaluation reads beside the token shards of its job, as a spec."""
    found = FineTuningJobSpec(evaluation_data=Comparison.FromString(work.comparison or b"").data)
    found.evaluation.CopyFrom(ConfigResolved.FromString(work.config or b"").resolved_spec.evaluation)
    return found


async def refuse_if_used(session: AsyncSession, row: UploadedDataset) -> None:
    """Raises FailedPrecondition if a job that has not ended uses the dataset."""
    query = select(Work).where(Work.tenant == row.tenant, col(Work.state).not_in(lifecycle.TERMINAL))
    users = []
    for work in (await session.exec(query.order_by(Work.id))).all():
        is_job = work.kind == FINE_TUNING_JOB.name
        if row.id in dataset_ids(FineTuningJobSpec.FromString(work.spec) if is_job else _own_data(work)):
            users.append((work.id, KINDS[work.kind].noun.removeprefix("fine-tuning ")))
    if users:
        more = f" and {len(users) - 1} more" if len(users) > 1 else ""
        raise FailedPrecondition(
            "DATASET_IN_USE",
            f"Dataset {row.id} is used by {users[0][1]} {users[0][0]}{more}; wait until it has ended, or cancel it.",
            metadata={"job_id": users[0][0]},
        )
