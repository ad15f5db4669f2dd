import asyncio
import hashlib
import os
import random
import resource
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlmodel import select

from chassis.bus.event_bus import Bus
from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1 import dataset_service_pb2 as api
from finetuneflow.v1.dataset_pb2 import Dataset
from finetuneflow.v1.dataset_service_pb2_grpc import DatasetServiceStub
from finetuneflow.v1.fine_tuning_job_spec_pb2 import DataSource, FineTuningJobSpec, TrainingPhase
from gateway.passthrough import Passthrough
from gateway.servicers.datasets import Datasets, add_to_server
from gateway.sql.database import Database
from gateway.sql.tables import UploadedDataset, Work
from gateway.uploads import UploadLimits, sweep_for_ever
from tests.gateway.serving import Refusal, add_job, open_below, refusal, serving
from tests.servers.nats import NatsServer

ROWS = b'{"question": "q", "answer": "a"}\n' * 100
SHA256 = hashlib.sha256(ROWS).hexdigest()
LIMIT = 32 << 20
INVALID = grpc.StatusCode.INVALID_ARGUMENT


class DatasetServer:
    """A dataset service with access to its database and store."""

    def __init__(self, stub: DatasetServiceStub, database: Database, root: Path) -> None:
        self.stub = stub
        self.database = database
        self.root = root

    def upload(self, *messages: api.UploadDatasetRequest) -> Any:
        return self.stub.UploadDataset(iter(messages))

    async def uploaded(self, data: bytes = ROWS, **header: Any) -> Dataset:
        answer: api.UploadDatasetResponse = await self.upload(header_message(**header), *chunk_messages(data))
        return answer.dataset

    async def refusal_without_leftovers(self, *messages: api.UploadDatasetRequest) -> Refusal:
        """Returns the refusal, after checking that nothing of the upload was stored."""
        found = await refusal(self.upload(*messages))
        assert await self.is_empty()
        return found

    async def rows(self) -> list[UploadedDataset]:
        async with self.database.read() as session:
            return list((await session.exec(select(UploadedDataset))).all())

    def files(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if path.is_file()]

    async def is_empty(self) -> bool:
        return not await self.rows() and not self.files()


@pytest.fixture
def limits() -> UploadLimits:
    """The upload limits of `server`; a test overrides them by `parametrize`."""
    return UploadLimits(LIMIT)


UNBATCHED = pytest.mark.parametrize("limits", [UploadLimits(LIMIT, batch_bytes=1)])
"""Every chunk is written as it comes, so that a test can tell where a stream is."""


@pytest.fixture
async def passthrough(nats_server: NatsServer) -> AsyncIterator[Passthrough]:
    """No probe runs behind it."""
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "test")
    yield Passthrough(bus)
    await bus.close()


@pytest.fixture
async def server(
    tmp_path: Path, database: Database, limits: UploadLimits, passthrough: Passthrough
) -> AsyncIterator[DatasetServer]:
    root = tmp_path / "artifacts"
    servicer = Datasets(database, ArtifactStore(f"file://{root}"), limits, passthrough)
    async with (
        serving(api, "DatasetService", add_to_server, servicer) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield DatasetServer(DatasetServiceStub(channel), database, root)


def header_message(**header: Any) -> api.UploadDatasetRequest:
    return api.UploadDatasetRequest(header=api.UploadDatasetHeader(**{"filename": "train.jsonl", **header}))


def chunk_messages(data: bytes, size: int = 1 << 20) -> list[api.UploadDatasetRequest]:
    return [api.UploadDatasetRequest(chunk=data[start : start + size]) for start in range(0, len(data), size)]


async def test_uploaded_file_is_stored_unchanged(server: DatasetServer) -> None:
    """The stored bytes are those that were sent, and the name is the file's without its folders."""
    dataset = await server.uploaded(
        filename="C:\\data\\../my rows.jsonl", size_bytes=len(ROWS), sha256=SHA256.upper(), display_name="Mine"
    )
    assert dataset.id.startswith("ds_")
    assert (dataset.filename, dataset.display_name) == ("my rows.jsonl", "Mine")
    assert (dataset.size_bytes, dataset.sha256) == (len(ROWS), SHA256)
    assert dataset.path == f"datasets/{dataset.id}/my rows.jsonl"
    assert (server.root / "default" / dataset.path).read_bytes() == ROWS
    answer = await server.stub.GetDataset(api.GetDatasetRequest(dataset_id=dataset.id))
    assert answer.dataset == dataset


async def test_upload_does_not_buffer_file_in_memory(server: DatasetServer) -> None:
    """A gateway that buffered uploads would be killed by the first large file."""
    data = bytes(range(256)) * (20 << 12)
    await server.uploaded()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = await server.stub.UploadDataset(message for message in [header_message(), *chunk_messages(data, 64 << 10)])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert answer.dataset.sha256 == hashlib.sha256(data).hexdigest()
    assert (server.root / "default" / answer.dataset.path).read_bytes() == data
    # The test holds one copy as chunks; a server that held another would need twice that.
    assert grown < 2 * len(data)


WRONG_HEADERS: list[tuple[dict[str, Any], list[str]]] = [
    ({"filename": ""}, ["header.filename"]),
    ({"filename": "folder/"}, ["header.filename"]),
    ({"filename": ".."}, ["header.filename"]),
    ({"filename": "a\n.jsonl"}, ["header.filename"]),
    ({"filename": "a\0.jsonl"}, ["header.filename"]),
    ({"filename": "\u202elnosj.jsonl"}, ["header.filename"]),
    ({"filename": "ä" * 125 + ".jsonl"}, ["header.filename"]),
    ({"display_name": "x" * 129}, ["header.display_name"]),
    ({"request_id": "x" * 129}, ["header.request_id"]),
    ({"request_id": "a\0b"}, ["header.request_id"]),
    ({"size_bytes": -1}, ["header.size_bytes"]),
    ({"offset": -1}, ["header.offset"]),
    ({"sha256": "abc", "filename": "x\n.jsonl"}, ["header.filename", "header.sha256"]),
]


async def test_invalid_header_is_refused_with_all_invalid_fields(server: DatasetServer) -> None:
    """A caller corrects all errors at once instead of one per attempt."""
    for header, fields in WRONG_HEADERS:
        found = await server.refusal_without_leftovers(header_message(**header), *chunk_messages(ROWS))
        assert (found.code, found.reason) == (INVALID, "INVALID_HEADER")
        assert list(found.fields) == fields


async def test_refusal_of_unknown_file_extension_lists_known_ones(server: DatasetServer) -> None:
    for name in ("rows.xlsx", "jsonl", "rows.parquet.gz"):
        found = await server.refusal_without_leftovers(header_message(filename=name), *chunk_messages(ROWS))
        assert (found.code, found.reason, found.fields) == (INVALID, "UNSUPPORTED_FILE", ("header.filename",))
        assert name in found.message
        assert ".jsonl" in found.message


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "HEADER_EXPECTED"),
        ([api.UploadDatasetRequest()], "HEADER_EXPECTED"),
        (chunk_messages(ROWS), "HEADER_EXPECTED"),
        ([header_message()], "EMPTY_FILE"),
        ([header_message(), api.UploadDatasetRequest(chunk=b"")], "EMPTY_FILE"),
        ([header_message(size_bytes=0)], "EMPTY_FILE"),
        ([header_message(), *chunk_messages(ROWS), header_message()], "CHUNK_EXPECTED"),
        ([header_message(), *chunk_messages(ROWS), api.UploadDatasetRequest()], "CHUNK_EXPECTED"),
        ([header_message(), *chunk_messages(b"x" * ((1 << 20) + 1), 2 << 20)], "CHUNK_TOO_LARGE"),
        ([header_message(size_bytes=len(ROWS) + 1), *chunk_messages(ROWS)], "SIZE_MISMATCH"),
        ([header_message(size_bytes=len(ROWS) - 1), *chunk_messages(ROWS)], "SIZE_MISMATCH"),
        ([header_message(sha256="0" * 64), *chunk_messages(ROWS)], "SHA256_MISMATCH"),
    ],
)
async def test_malformed_stream_is_refused_and_leaves_no_file(
    server: DatasetServer, messages: list[api.UploadDatasetRequest], reason: str
) -> None:
    """An incomplete file must not be trained on, nor use disk space."""
    found = await server.refusal_without_leftovers(*messages)
    assert (found.code, found.reason) == (INVALID, reason)


async def test_upload_above_size_limit_is_refused_with_or_without_declared_size(server: DatasetServer) -> None:
    """Otherwise one caller could fill the disk for all."""
    for messages in ([header_message(size_bytes=LIMIT + 1)], [header_message(), *chunk_messages(b"x" * (LIMIT + 1))]):
        found = await server.refusal_without_leftovers(*messages)
        assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DATASET_TOO_LARGE")
        assert found.metadata["max_bytes"] == str(LIMIT)


async def test_validate_and_preview_without_probe_are_unavailable(server: DatasetServer) -> None:
    """With an empty success, callers would believe that their rows were checked."""
    source = DataSource(dataset=(await server.uploaded()).id)
    for call, empty in (
        (server.stub.ValidateDataset, api.ValidateDatasetRequest),
        (server.stub.PreviewDataset, api.PreviewDatasetRequest),
    ):
        found = await refusal(call(empty()))
        assert (found.code, found.fields) == (INVALID, ("source.dataset", "base_model"))
        found = await refusal(call(empty(source=source, base_model="smollm2-135m")))
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_PROBE")
        found = await refusal(call(empty(source=DataSource(dataset="ds_other"), base_model="smollm2-135m")))
        assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "DATASET_NOT_FOUND")


@pytest.mark.parametrize("cut_after", [0, 1, 5])
async def test_interrupted_upload_leaves_no_file(server: DatasetServer, cut_after: int) -> None:
    """An incomplete dataset must not look complete."""
    sent = asyncio.Event()

    async def messages() -> AsyncIterator[api.UploadDatasetRequest]:
        yield header_message()
        for chunk in list(chunk_messages(bytes(6 << 20)))[:cut_after]:
            yield chunk
        sent.set()
        await asyncio.Event().wait()

    call = server.stub.UploadDataset(messages())
    await asyncio.wait_for(sent.wait(), 10)
    if cut_after == 5:
        # The first batch is on disk by now or about to be: what is cut is a file, not only a stream.
        await wait_until(lambda: bool(server.files()))
    call.cancel()
    # A call after the cut is answered after its handler was cancelled; the rest is waited for.
    await server.stub.ListDatasets(api.ListDatasetsRequest())
    await wait_until(lambda: not server.files())
    assert await server.is_empty()


LONG = bytes(range(256)) * (5 << 12)
"""Five chunks of 1 MiB."""
LONG_SHA256 = hashlib.sha256(LONG).hexdigest()
WITH_SHA256: dict[str, Any] = {"request_id": "r1", "size_bytes": len(LONG), "sha256": LONG_SHA256}
SHA256_AT_END: dict[str, Any] = {"request_id": "r1", "size_bytes": len(LONG), "sha256_follows": True}


async def interrupt_upload(server: DatasetServer, data: bytes, *, arrived: bool = True, **header: Any) -> int:
    """Interrupts an upload after `data` and returns the received bytes; `arrived` waits until all of `data` is on
    disk."""
    sent = asyncio.Event()

    async def messages() -> AsyncIterator[api.UploadDatasetRequest]:
        yield header_message(**header)
        for chunk in chunk_messages(data):
            yield chunk
        sent.set()
        await asyncio.Event().wait()

    call = server.stub.UploadDataset(messages())
    await asyncio.wait_for(sent.wait(), 10)
    if arrived:
        size = header.get("offset", 0) + len(data)
        await wait_until(lambda: any(path.stat().st_size == size for path in server.files()))
    call.cancel()
    # A call after the cut is answered after its handler was cancelled.
    await server.stub.ListDatasets(api.ListDatasetsRequest())
    await wait_until(lambda: not open_below(server.root))
    name, sha256 = header.get("request_id") or "none", header.get("sha256", "")
    return int((await server.stub.GetUpload(api.GetUploadRequest(request_id=name, sha256=sha256))).received_bytes)


@pytest.mark.parametrize("header", [WITH_SHA256, SHA256_AT_END])
@pytest.mark.parametrize("arrived", [True, False])
@UNBATCHED
async def test_interrupted_upload_resumes_at_received_bytes(
    server: DatasetServer, header: dict[str, Any], arrived: bool
) -> None:
    """An interruption near the end must not cost a second upload of two gigabytes."""
    rng = random.Random(7)  # noqa: S311 - where to cut
    offset = 0
    for _ in range(3):
        end = rng.randint(offset, len(LONG) - 1)
        received = await interrupt_upload(server, LONG[offset:end], arrived=arrived, offset=offset, **header)
        # Chunks in flight when the stream broke may be lost; chunks that had arrived are not.
        assert received == end if arrived else offset <= received <= end
        offset = received
    tail = [api.UploadDatasetRequest(sha256=LONG_SHA256)] if "sha256_follows" in header else []
    answer = await server.upload(header_message(offset=offset, **header), *chunk_messages(LONG[offset:]), *tail)
    assert (answer.dataset.size_bytes, answer.dataset.sha256) == (len(LONG), LONG_SHA256)
    assert [path.read_bytes() for path in server.files()] == [LONG]
    request = api.GetUploadRequest(request_id="r1", sha256=header.get("sha256", ""))
    assert (await server.stub.GetUpload(request)).dataset == answer.dataset


@UNBATCHED
async def test_resume_at_any_other_offset_is_refused(server: DatasetServer) -> None:
    """Repeated or missing bytes would otherwise be found only by the hash at the end, hours later."""
    received = await interrupt_upload(server, LONG[: 3 << 20], **WITH_SHA256)
    assert received > 0
    for offset in {1, received - 1, received + 1, len(LONG)} - {received}:
        found = await refusal(server.upload(header_message(offset=offset, **WITH_SHA256)))
        assert (found.code, found.reason) == (grpc.StatusCode.OUT_OF_RANGE, "WRONG_OFFSET")
        assert found.metadata["received_bytes"] == str(received)
    found = await refusal(server.upload(header_message(offset=5, **{**WITH_SHA256, "request_id": "unknown"})))
    assert found.metadata["received_bytes"] == "0"
    assert len(server.files()) == 1
    assert (await server.uploaded(LONG, **WITH_SHA256)).sha256 == LONG_SHA256
    assert len(server.files()) == 1


async def test_offset_requires_request_id_size_and_sha256(server: DatasetServer) -> None:
    for header in ({}, {"request_id": "r1", "size_bytes": 5}, {"sha256": SHA256, "size_bytes": 5}):
        found = await server.refusal_without_leftovers(header_message(offset=1, **header))
        assert (found.code, found.fields) == (INVALID, ("header.offset",))


@UNBATCHED
async def test_damaged_partial_upload_is_refused_and_deleted(server: DatasetServer) -> None:
    """A resumed upload is hashed from its first byte, including the part stored earlier."""
    received = await interrupt_upload(server, LONG[: 3 << 20], **WITH_SHA256)
    (partial,) = server.files()
    partial.write_bytes(b"?" + partial.read_bytes()[1:])
    found = await refusal(
        server.upload(header_message(offset=received, **WITH_SHA256), *chunk_messages(LONG[received:]))
    )
    assert (found.code, found.reason) == (INVALID, "SHA256_MISMATCH")
    assert await server.is_empty()
    assert (await server.stub.GetUpload(api.GetUploadRequest(request_id="r1", sha256=LONG_SHA256))).received_bytes == 0


@pytest.mark.parametrize("header", [{"request_id": "r1"}, {"size_bytes": len(LONG), "sha256": LONG_SHA256}])
@UNBATCHED
async def test_interrupted_upload_that_cannot_be_resumed_leaves_no_file(
    server: DatasetServer, header: dict[str, Any]
) -> None:
    await interrupt_upload(server, LONG[: 3 << 20], **{"request_id": "", **header})
    assert await server.is_empty()


@UNBATCHED
async def test_concurrent_streams_of_one_upload_make_one_dataset(server: DatasetServer) -> None:
    """A client may reconnect before its old connection is known to be dead: two writers must not mix their bytes."""
    started, go_on = asyncio.Event(), asyncio.Event()

    async def messages() -> AsyncIterator[api.UploadDatasetRequest]:
        yield header_message(**WITH_SHA256)
        for number, chunk in enumerate(chunk_messages(LONG)):
            yield chunk
            if number == 1:
                started.set()
                await go_on.wait()

    first = asyncio.ensure_future(server.stub.UploadDataset(messages()))
    await asyncio.wait_for(started.wait(), 10)
    await wait_until(lambda: bool(server.files()))
    for offset in (0, 1 << 20):
        # No chunks: grpc.aio loses the status of a call that ends while it sends.
        found = await refusal(server.upload(header_message(offset=offset, **WITH_SHA256)))
        assert (found.code, found.reason) == (grpc.StatusCode.ABORTED, "UPLOAD_IN_PROGRESS")
    go_on.set()
    dataset = (await first).dataset
    assert (await server.upload(header_message(**WITH_SHA256))).dataset == dataset
    assert len(await server.rows()) == len(server.files()) == 1


@pytest.mark.parametrize("limits", [UploadLimits(LIMIT, stall_seconds=0.1)])
async def test_stalled_stream_releases_its_upload(server: DatasetServer) -> None:
    """Otherwise the caller's next stream would be refused until the old connection is known to be dead."""

    async def messages() -> AsyncIterator[api.UploadDatasetRequest]:
        yield header_message(**WITH_SHA256)
        yield chunk_messages(LONG)[0]
        await asyncio.Event().wait()

    found = await refusal(server.stub.UploadDataset(messages()))
    assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "UPLOAD_STALLED")
    answer = await server.upload(header_message(offset=1 << 20, **WITH_SHA256), *chunk_messages(LONG[1 << 20 :]))
    assert answer.dataset.sha256 == LONG_SHA256


@pytest.mark.parametrize("limits", [UploadLimits(LIMIT, stall_seconds=0.1)])
@pytest.mark.parametrize("sent", [[], [header_message()], [header_message(), *chunk_messages(ROWS)]])
async def test_stream_that_sends_nothing_is_ended(server: DatasetServer, sent: list[api.UploadDatasetRequest]) -> None:
    """Streams that nobody feeds would hold a gateway's memory and its slots for uploads without limit."""

    async def messages() -> AsyncIterator[api.UploadDatasetRequest]:
        for message in sent:
            yield message
        await asyncio.Event().wait()

    found = await refusal(server.stub.UploadDataset(messages()))
    assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "UPLOAD_STALLED")
    assert found.metadata["stall_seconds"] == "0.1"
    assert await server.is_empty()


async def test_idle_upload_writes_what_it_has_received(server: DatasetServer) -> None:
    """60 idle uploads would otherwise hold 4 MiB of chunks each in the gateway's memory."""

    async def messages() -> AsyncIterator[api.UploadDatasetRequest]:
        yield header_message(**WITH_SHA256)
        yield chunk_messages(LONG)[0]
        await asyncio.Event().wait()

    call = server.stub.UploadDataset(messages())
    await wait_until(lambda: any(path.stat().st_size == 1 << 20 for path in server.files()))
    call.cancel()


@UNBATCHED
async def test_partial_uploads_are_deleted_after_a_day(server: DatasetServer) -> None:
    """A gateway that runs for months must free the disk without a restart."""
    await interrupt_upload(server, LONG[: 3 << 20], **WITH_SHA256)
    await interrupt_upload(server, LONG[: 2 << 20], **{**WITH_SHA256, "request_id": "r2"})
    old, _ = sorted(server.files(), key=lambda path: path.stat().st_size)
    yesterday = time.time() - 90_000
    os.utime(old, (yesterday, yesterday))
    sweeping = asyncio.ensure_future(sweep_for_ever(ArtifactStore(f"file://{server.root}")))
    await wait_until(lambda: not old.exists())
    sweeping.cancel()
    received = [
        (await server.stub.GetUpload(api.GetUploadRequest(request_id=name, sha256=LONG_SHA256))).received_bytes
        for name in ("r1", "r2")
    ]
    assert received == [3 << 20, 0]


@UNBATCHED
async def test_upload_resumes_at_another_gateway(server: DatasetServer, passthrough: Passthrough) -> None:
    received = await interrupt_upload(server, LONG[: 3 << 20], **WITH_SHA256)
    other = Datasets(server.database, ArtifactStore(f"file://{server.root}"), UploadLimits(LIMIT), passthrough)
    async with (
        serving(api, "DatasetService", add_to_server, other) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = DatasetServiceStub(channel)
        request = api.GetUploadRequest(request_id="r1", sha256=LONG_SHA256.upper())
        assert (await stub.GetUpload(request)).received_bytes == received
        answer = await stub.UploadDataset(
            iter([header_message(offset=received, **WITH_SHA256), *chunk_messages(LONG[received:])])
        )
    assert answer.dataset.sha256 == LONG_SHA256


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        ([], "SHA256_EXPECTED"),
        ([api.UploadDatasetRequest(sha256="0" * 64)], "SHA256_MISMATCH"),
        ([api.UploadDatasetRequest(sha256="0")], "INVALID_SHA256"),
        ([api.UploadDatasetRequest(sha256=LONG_SHA256), *chunk_messages(b"x")], "CHUNK_UNEXPECTED"),
    ],
)
async def test_announced_final_sha256_is_required_and_verified(
    server: DatasetServer, tail: list[api.UploadDatasetRequest], reason: str
) -> None:
    """A stream that breaks just before it must not count as complete."""
    found = await refusal(server.upload(header_message(**SHA256_AT_END), *chunk_messages(LONG), *tail))
    assert (found.code, found.reason) == (INVALID, reason)
    assert not await server.rows()
    # Only what may still become right is kept.
    assert len(server.files()) == (1 if reason == "SHA256_EXPECTED" else 0)


async def test_unannounced_final_sha256_is_refused(server: DatasetServer) -> None:
    found = await server.refusal_without_leftovers(
        header_message(), *chunk_messages(ROWS), api.UploadDatasetRequest(sha256=SHA256)
    )
    assert found.reason == "CHUNK_EXPECTED"
    found = await server.refusal_without_leftovers(header_message(sha256=SHA256, sha256_follows=True))
    assert found.fields == ("header.sha256_follows",)


async def test_get_upload_requires_request_id(server: DatasetServer) -> None:
    for request in (api.GetUploadRequest(), api.GetUploadRequest(request_id="r", sha256="x")):
        found = await refusal(server.stub.GetUpload(request))
        assert (found.code, found.reason) == (INVALID, "INVALID_REQUEST")
    assert await server.stub.GetUpload(api.GetUploadRequest(request_id="r")) == api.GetUploadResponse()
    await server.uploaded(request_id="r")
    found = await refusal(server.stub.GetUpload(api.GetUploadRequest(request_id="r", sha256="0" * 64)))
    assert found.reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("header", [{}, WITH_SHA256])
async def test_upload_on_full_disk_is_refused_and_leaves_no_file(server: DatasetServer, header: dict[str, Any]) -> None:
    """Otherwise unusable files would keep the disk full, also for trainings."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # A full disk shows in the same way as this limit: a write stores fewer bytes than it was given.
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, limits[1]))
        found = await refusal(server.upload(header_message(**header), *chunk_messages(LONG)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL")
    assert await server.is_empty()


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - files and rows announce nothing
            await asyncio.sleep(0.01)


async def test_file_is_deleted_if_its_row_cannot_be_written(server: DatasetServer) -> None:
    """Otherwise every failed database write would leak a file."""
    if not server.database.is_sqlite:
        pytest.skip("the trigger is written for SQLite")
    async with server.database.write() as session:
        connection = await session.connection()
        await connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON datasets BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    found = await server.refusal_without_leftovers(header_message(), *chunk_messages(ROWS))
    assert found.code is grpc.StatusCode.INTERNAL
    # A resumable upload is kept: a failure of the database must not cost the caller hours of sending.
    assert (
        await refusal(server.upload(header_message(**WITH_SHA256), *chunk_messages(LONG)))
    ).code is grpc.StatusCode.INTERNAL
    async with server.database.write() as session:
        await (await session.connection()).exec_driver_sql("DROP TRIGGER refuse")
    answer = await server.upload(header_message(offset=len(LONG), **WITH_SHA256))
    assert answer.dataset.sha256 == LONG_SHA256
    assert [path.read_bytes() for path in server.files()] == [LONG]


async def test_the_same_request_id_makes_one_dataset(server: DatasetServer) -> None:
    """A client that retries after a lost response gets its dataset, not a second copy."""
    first = await server.uploaded(request_id="r1")
    assert await server.uploaded(request_id="r1") == first
    assert await server.uploaded(request_id="r1", sha256=SHA256) == first
    assert (await server.uploaded(request_id="r2")).id != first.id
    assert len(await server.rows()) == len(server.files()) == 2


async def test_repeated_upload_is_answered_without_its_chunks(server: DatasetServer) -> None:
    """Repeating the upload of a large file after a lost response costs nothing."""
    first = await server.uploaded(request_id="r1")
    answer = await server.upload(header_message(request_id="r1", sha256=SHA256))
    assert answer.dataset == first


async def test_concurrent_uploads_of_one_request_id_make_one_dataset(server: DatasetServer) -> None:
    datasets = await asyncio.gather(*(server.uploaded(request_id="r1") for _ in range(8)))
    assert len({dataset.id for dataset in datasets}) == 1
    assert len(await server.rows()) == len(server.files()) == 1


async def test_a_request_id_with_other_bytes_is_refused(server: DatasetServer) -> None:
    """Otherwise the job would be trained on the wrong rows."""
    first = await server.uploaded(request_id="r1")
    other = ROWS + b"{}\n"
    for messages in (
        [header_message(request_id="r1"), *chunk_messages(other)],
        [header_message(request_id="r1", sha256=hashlib.sha256(other).hexdigest())],
    ):
        found = await refusal(server.upload(*messages))
        assert (found.code, found.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
        assert first.id in found.message
    assert len(await server.rows()) == len(server.files()) == 1


@pytest.mark.parametrize("filename", ["ä" * 124 + ".jsonl", "a*[1]::b?#%.jsonl", ".jsonl"])
async def test_unusual_valid_file_names_are_accepted_unchanged(server: DatasetServer, filename: str) -> None:
    """No part of a name reaches a shell or a glob."""
    dataset = await server.uploaded(filename=filename)
    assert dataset.filename == filename
    assert (server.root / "default" / dataset.path).read_bytes() == ROWS
    await server.stub.DeleteDataset(api.DeleteDatasetRequest(dataset_id=dataset.id))
    assert await server.is_empty()


async def test_pages_neither_skip_nor_repeat_datasets(server: DatasetServer) -> None:
    """Newest first, also when datasets are created and deleted between two pages."""
    made = [(await server.uploaded()).id for _ in range(7)]
    listed: list[str] = []
    token = ""
    while True:
        answer = await server.stub.ListDatasets(api.ListDatasetsRequest(page_size=3, page_token=token))
        assert len(answer.datasets) <= 3
        listed += [dataset.id for dataset in answer.datasets]
        token = answer.next_page_token
        if not token:
            break
        await server.stub.DeleteDataset(api.DeleteDatasetRequest(dataset_id=listed[-1]))
        await server.uploaded()
    assert listed == sorted(made, reverse=True)


async def test_invalid_page_size_and_page_token_are_refused(server: DatasetServer) -> None:
    """An ignored token would return the first page again and again."""
    for size in (-1, 1001):
        found = await refusal(server.stub.ListDatasets(api.ListDatasetsRequest(page_size=size)))
        assert (found.code, found.reason, found.fields) == (INVALID, "INVALID_PAGE_SIZE", ("page_size",))
    # No base64, not ASCII, an empty list, a token of ListFineTuningJobs.
    for token in ("x", "ä", "W10=", "WyJqb2JzIiwiYSJd"):
        found = await refusal(server.stub.ListDatasets(api.ListDatasetsRequest(page_token=token)))
        assert (found.code, found.reason, found.fields) == (INVALID, "INVALID_PAGE_TOKEN", ("page_token",))


async def test_refusal_of_unknown_dataset_contains_its_id(server: DatasetServer) -> None:
    for call in (
        server.stub.GetDataset(api.GetDatasetRequest(dataset_id="ds_nope")),
        server.stub.DeleteDataset(api.DeleteDatasetRequest(dataset_id="ds_nope")),
    ):
        found = await refusal(call)
        assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "DATASET_NOT_FOUND")
        assert "ds_nope" in found.message


@pytest.mark.parametrize("place", ["training_data", "evaluation_data", "phases"])
async def test_dataset_cannot_be_deleted_until_its_jobs_have_ended(server: DatasetServer, place: str) -> None:
    """Deleting the rows of a running training would fail it after hours."""
    dataset = await server.uploaded()
    source = DataSource(dataset=dataset.id)
    used = [TrainingPhase(training_data=[source])] if place == "phases" else [source]
    job_id = await add_job(server.database, FineTuningJobSpec(**{place: used}))  # type: ignore[arg-type]
    await add_job(server.database, FineTuningJobSpec(training_data=[DataSource(dataset="ds_other")]))
    request = api.DeleteDatasetRequest(dataset_id=dataset.id)
    found = await refusal(server.stub.DeleteDataset(request))
    assert (found.code, found.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "DATASET_IN_USE")
    assert job_id in found.message
    async with server.database.write() as session:
        job = await session.get_one(Work, job_id)
        job.state = "JOB_STATE_CANCELLED"
    await server.stub.DeleteDataset(request)
    assert await server.is_empty()
