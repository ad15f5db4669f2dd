"""ArtifactService: files that jobs made."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, BinaryIO

import grpc
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import FailedPrecondition, InvalidArgument, NotFound, OutOfRange, Violation
from chassis.store.artifact_store import ArtifactMissing, ArtifactStore
from finetuneflow.chunks import CHUNK_BYTES, frame
from finetuneflow.v1 import artifact_service_pb2 as api
from finetuneflow.v1.artifact_pb2 import Artifact
from finetuneflow.v1.artifact_service_pb2_grpc import (
    ArtifactServiceServicer,
    add_ArtifactServiceServicer_to_server,
)
from gateway import views
from gateway.access.callers import tenant_of
from gateway.paging import page_of
from gateway.servicers.handlers import add_with_byte_stream
from gateway.sql.database import Database
from gateway.sql.tables import SavedArtifact, SavedResult, Work
from gateway.uncancellable import in_thread

Context = grpc.aio.ServicerContext[Any, Any]

FOLDER = "inode/directory"
# Read ahead while those before are sent.
_BATCH_CHUNKS = 4


class Artifacts(ArtifactServiceServicer):
    """Served by the gateway."""

    def __init__(self, database: Database, store: ArtifactStore) -> None:
        self._database = database
        self._store = store

    async def ListArtifacts(self, request: api.ListArtifactsRequest, context: Context) -> api.ListArtifactsResponse:
        page = page_of(request, "artifacts", request.job_id, request.kind)
        async with self._database.read() as session:
            query = select(SavedArtifact).where(
                SavedArtifact.work_id == await _work_of(session, request.job_id, tenant_of(context))
            )
            if request.kind:
                query = query.where(SavedArtifact.kind == request.kind)
            if page.after:
                query = query.where(col(SavedArtifact.id) > page.after)
            rows = (await session.exec(query.order_by(col(SavedArtifact.id)).limit(page.limit))).all()
        kept, token = page.cut(rows, lambda row: row.id)
        return api.ListArtifactsResponse(artifacts=[_artifact(row) for row in kept], next_page_token=token)

    async def DownloadArtifact(self, request: api.DownloadArtifactRequest, context: Context) -> AsyncIterator[bytes]:
        """Yields serialised responses: see `add_to_server`."""
        tenant = tenant_of(context)
        async with self._database.read() as session:
            row = await _find(session, request.artifact_id, tenant)
        _check_downloadable(row, request.offset)
        try:
            source = await in_thread(self._store.open_read, f"{tenant}/{row.path}", request.offset)
        except ArtifactMissing as error:
            raise _file_missing(row) from error
        # A download lasts as long as its reader likes; the file is closed when the reader leaves.
        with source:
            yield api.DownloadArtifactResponse(artifact=_artifact(row)).SerializeToString()
            left = row.size_bytes - request.offset
            async for chunk in _chunks(source, left):
                left -= len(chunk)
                yield frame(chunk)
        if left:
            raise _file_missing(row)


async def _chunks(source: BinaryIO, size: int) -> AsyncIterator[bytes]:
    """At most `size` bytes; the next batch is read while this one is taken."""
    reading = asyncio.ensure_future(asyncio.to_thread(_read, source, size))
    try:
        while batch := await asyncio.shield(reading):
            size -= sum(map(len, batch))
            reading = asyncio.ensure_future(asyncio.to_thread(_read, source, size))
            for chunk in batch:
                yield chunk
    finally:
        # The file is closed right after, and must not be while a thread reads it.
        await asyncio.wait([reading])
        if not reading.cancelled():
            reading.exception()


def _read(source: BinaryIO, size: int) -> list[bytes]:
    batch: list[bytes] = []
    while size and len(batch) < _BATCH_CHUNKS and (chunk := source.read(min(size, CHUNK_BYTES))):
        batch.append(chunk)
        size -= len(chunk)
    return batch


def add_to_server(servicer: Artifacts, server: Any) -> None:
    """Registers the servicer; DownloadArtifact yields serialised responses."""
    service = api.DESCRIPTOR.services_by_name["ArtifactService"]
    add_with_byte_stream(service, "DownloadArtifact", add_ArtifactServiceServicer_to_server, servicer, server)


def _check_downloadable(row: SavedArtifact, offset: int) -> None:
    if row.media_type == FOLDER:
        raise FailedPrecondition("ARTIFACT_IS_FOLDER", f"Artifact {row.id} ({row.name}) is a folder, not a file.")
    if offset < 0:
        problem = f"{offset} is negative"
        raise InvalidArgument("INVALID_OFFSET", f"offset {problem}.", [Violation("offset", problem)])
    if offset > row.size_bytes:
        problem = f"{offset} is beyond the end of artifact {row.id}, which has {row.size_bytes} bytes"
        raise OutOfRange("OFFSET_BEYOND_END", f"offset {problem}.", [Violation("offset", problem)])


def _file_missing(row: SavedArtifact) -> NotFound:
    return NotFound(
        "ARTIFACT_FILE_MISSING",
        f"The file of artifact {row.id} ({row.name}) is damaged or missing in the artifact store; ask the operator to "
        "check it.",
    )


async def _work_of(session: AsyncSession, work_id: str, tenant: str) -> str:
    """Returns the work whose artifacts are meant: for an evaluation or export left by a job, that job."""
    found = (await session.exec(select(Work.id).where(Work.id == work_id, Work.tenant == tenant))).one_or_none()
    if found is None:
        left = select(SavedResult.work_id).where(SavedResult.id == work_id, SavedResult.tenant == tenant)
        found = (await session.exec(left)).one_or_none()
    if found is None:
        raise NotFound("JOB_NOT_FOUND", f"There is no fine-tuning job, evaluation or export {work_id!r}.")
    return found


async def _find(session: AsyncSession, artifact_id: str, tenant: str) -> SavedArtifact:
    query = select(SavedArtifact).where(SavedArtifact.id == artifact_id, SavedArtifact.tenant == tenant)
    row = (await session.exec(query)).one_or_none()
    if row is None:
        raise NotFound("ARTIFACT_NOT_FOUND", f"There is no artifact {artifact_id!r}.")
    return row


def _artifact(row: SavedArtifact) -> Artifact:
    return Artifact(
        id=row.id,
        job_id=row.work_id,
        name=row.name,
        kind=row.kind,
        path=row.path,
        sha256=row.sha256,
        size_bytes=row.size_bytes,
        media_type=row.media_type,
        create_time=views.timestamp(row.create_time),
    )
