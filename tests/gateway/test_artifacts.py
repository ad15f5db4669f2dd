import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1 import artifact_service_pb2 as api
from finetuneflow.v1.artifact_pb2 import Artifact
from finetuneflow.v1.artifact_service_pb2_grpc import ArtifactServiceStub
from gateway.identifiers import new_id
from gateway.servicers.artifacts import FOLDER, Artifacts, add_to_server
from gateway.sql.database import Database
from gateway.sql.tables import SavedArtifact, now
from tests.gateway.serving import add_job, open_below, refusal, serving

DATA = bytes(range(256)) * 5_000


class ArtifactServer:
    def __init__(self, stub: ArtifactServiceStub, database: Database, store: ArtifactStore, root: Path) -> None:
        self.stub = stub
        self.database = database
        self.store = store
        self.root = root

    async def add(
        self, job_id: str, name: str, *, kind: str = "export_file", media_type: str = "", tenant: str = "default"
    ) -> str:
        """A file of a job with its row, as acceptance of its event would leave them; returns the artifact's id."""
        path = f"jobs/{job_id}/{name}"
        with self.store.begin_write(f"{tenant}/{path}") as writer:
            writer.write(DATA)
            stored = writer.commit()
        row = SavedArtifact(
            id=new_id("ar"),
            tenant=tenant,
            work_id=job_id,
            name=name,
            kind=kind,
            path=path,
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
            media_type=media_type or "application/octet-stream",
            create_time=now(),
        )
        async with self.database.write() as session:
            session.add(row)
        return row.id

    async def download(self, artifact_id: str, offset: int = 0) -> tuple[Artifact, bytes]:
        call = self.stub.DownloadArtifact(api.DownloadArtifactRequest(artifact_id=artifact_id, offset=offset))
        first, *rest = [message async for message in call]
        assert first.WhichOneof("content") == "artifact"
        assert all(message.WhichOneof("content") == "chunk" for message in rest)
        assert all(len(message.chunk) <= 1 << 20 for message in rest)
        return first.artifact, b"".join(message.chunk for message in rest)


@pytest.fixture
async def server(tmp_path: Path, database: Database) -> AsyncIterator[ArtifactServer]:
    root = tmp_path / "artifacts"
    store = ArtifactStore(f"file://{root}")
    servicer = Artifacts(database, store)
    async with (
        serving(api, "ArtifactService", add_to_server, servicer) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield ArtifactServer(ArtifactServiceStub(channel), database, store, root)


@pytest.mark.parametrize("offset", [0, 1, 600_000, len(DATA) - 1, len(DATA)])
async def test_download_resumes_at_offset(server: ArtifactServer, offset: int) -> None:
    """A gigabyte that is interrupted near its end is not fetched twice, and its hash can still be verified."""
    artifact_id = await server.add(await add_job(server.database), "export/finetuneflow_export.zip")
    artifact, data = await server.download(artifact_id, offset)
    assert data == DATA[offset:]
    assert artifact.sha256 == hashlib.sha256(DATA).hexdigest()
    assert (artifact.id, artifact.size_bytes) == (artifact_id, len(DATA))


async def test_invalid_downloads_are_refused_with_reason(server: ArtifactServer) -> None:
    job_id = await add_job(server.database)
    file = await server.add(job_id, "report.md")
    folder = await server.add(job_id, "checkpoint", media_type=FOLDER)
    foreign = await server.add(job_id, "secret.md", tenant="another")
    for artifact_id, offset, code, reason in (
        ("ar_nope", 0, grpc.StatusCode.NOT_FOUND, "ARTIFACT_NOT_FOUND"),
        (foreign, 0, grpc.StatusCode.NOT_FOUND, "ARTIFACT_NOT_FOUND"),
        (folder, 0, grpc.StatusCode.FAILED_PRECONDITION, "ARTIFACT_IS_FOLDER"),
        (file, -1, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_OFFSET"),
        (file, len(DATA) + 1, grpc.StatusCode.OUT_OF_RANGE, "OFFSET_BEYOND_END"),
    ):
        found = await refusal(server.download(artifact_id, offset))
        assert (found.code, found.reason) == (code, reason)
        assert artifact_id in found.message or found.reason == "INVALID_OFFSET"


@pytest.mark.parametrize("left", [None, b"half"])
async def test_download_of_incomplete_file_fails(server: ArtifactServer, left: bytes | None) -> None:
    """A package truncated by a full disk must not end with status OK."""
    job_id = await add_job(server.database)
    artifact_id = await server.add(job_id, "report.md")
    file = server.root / "default" / "jobs" / job_id / "report.md"
    file.unlink()
    if left is not None:
        file.write_bytes(left)
    found = await refusal(server.download(artifact_id))
    assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "ARTIFACT_FILE_MISSING")
    assert artifact_id in found.message


async def test_cancelled_download_closes_its_file(server: ArtifactServer) -> None:
    """Otherwise a gateway would run out of file descriptors."""
    artifact_id = await server.add(await add_job(server.database), "report.md")
    for _ in range(5):
        call = server.stub.DownloadArtifact(api.DownloadArtifactRequest(artifact_id=artifact_id))
        await call.read()
        call.cancel()
    async with asyncio.timeout(10):
        while open_below(server.root):  # noqa: ASYNC110 - a closed file announces nothing
            await asyncio.sleep(0.01)


async def test_artifacts_are_listed_oldest_first_with_kind_filter_and_pages(server: ArtifactServer) -> None:
    job_id, other = await add_job(server.database), await add_job(server.database)
    await server.add(other, "theirs")
    files = sorted([await server.add(job_id, f"file-{index}") for index in range(5)])
    report = await server.add(job_id, "report", kind="evaluation_report")
    listed: list[str] = []
    token = ""
    while True:
        request = api.ListArtifactsRequest(job_id=job_id, kind="export_file", page_size=2, page_token=token)
        answer = await server.stub.ListArtifacts(request)
        listed += [artifact.id for artifact in answer.artifacts]
        token = answer.next_page_token
        if not token:
            break
    assert listed == files
    everything = await server.stub.ListArtifacts(api.ListArtifactsRequest(job_id=job_id))
    assert sorted([*files, report]) == [artifact.id for artifact in everything.artifacts]


async def test_page_token_of_another_list_is_refused(server: ArtifactServer) -> None:
    """It would silently skip rows."""
    job_id = await add_job(server.database)
    for index in range(2):
        await server.add(job_id, f"file-{index}")
    answer = await server.stub.ListArtifacts(api.ListArtifactsRequest(job_id=job_id, page_size=1))
    request = api.ListArtifactsRequest(job_id=job_id, kind="checkpoint", page_token=answer.next_page_token)
    found = await refusal(server.stub.ListArtifacts(request))
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")


async def test_listing_artifacts_of_unknown_job_is_refused_with_its_id(server: ArtifactServer) -> None:
    """An empty list would look like a job without artifacts."""
    foreign = await add_job(server.database, tenant="another")
    for job_id in ("ftjob_nope", foreign):
        found = await refusal(server.stub.ListArtifacts(api.ListArtifactsRequest(job_id=job_id)))
        assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
        assert job_id in found.message
