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


class Room:
    """A dataset service with access to its database and store."""

    def __init__(self, stub: DatasetServiceStub, database: Database, root: Path) -> None:
        self.stub = stub
        self.database = database
        self.root = root

    def upload(self, *messages: api.UploadDatasetRequest) -> Any:
        return self.stub.UploadDataset(iter(messages))

    async def uploaded(self, data: bytes = ROWS, **header: Any) -> Dataset:
        answer: api.UploadDatasetResponse = await self.upload(head(**header), *chunks(data))
        return answer.dataset

    async def refused(self, *messages: api.UploadDatasetRequest) -> Refusal:
        """Returns the refusal, after checking that nothing of the upload was stored."""
        found = await refusal(self.upload(*messages))
        assert await self.nothing_left()
        return found

    async def rows(self) -> list[UploadedDataset]:
        async with self.database.read() as session:
            return list((await session.exec(select(UploadedDataset))).all())

    def files(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if path.is_file()]

    async def nothing_left(self) -> bool:
        return not await self.rows() and not self.files()


@pytest.fixture
def limits() -> UploadLimits:
    """The upload limits of `room`; a test overrides them by `parametrize`."""
    return UploadLimits(LIMIT)


AT_ONCE = pytest.mark.parametrize("limits", [UploadLimits(LIMIT, batch_bytes=1)])
"""Every chunk is written as it comes, so that a test can tell where a stream is."""


@pytest.fixture
async def passthrough(nats_server: NatsServer) -> AsyncIterator[Passthrough]:
    """No probe runs behind it."""
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "test")
    yield Passthrough(bus)
    await bus.close()


@pytest.fixture
async def room(
    tmp_path: Path, database: Database, limits: UploadLimits, passthrough: Passthrough
) -> AsyncIterator[Room]:
    root = tmp_path / "artifacts"
    servicer = Datasets(database, ArtifactStore(f"file://{root}"), limits, passthrough)
    async with (
        serving(api, "DatasetService", add_to_server, servicer) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Room(DatasetServiceStub(channel), database, root)


def head(**header: Any) -> api.UploadDatasetRequest:
    return api.UploadDatasetRequest(header=api.UploadDatasetHeader(**{"filename": "train.jsonl", **header}))


def chunks(data: bytes, size: int = 1 << 20) -> list[api.UploadDatasetRequest]:
    return [api.UploadDatasetRequest(chunk=data[start : start + size]) for start in range(0, len(data), size)]


async def test_an_upload_comes_back_as_it_was_sent(room: Room) -> None:
    """The file that is trained on is the file that was sent, under a name that people recognise."""
    dataset = await room.uploaded(
        filename="C:\\data\\../my rows.jsonl", size_bytes=len(ROWS), sha256=SHA256.upper(), display_name="Mine"
    )
    assert dataset.id.startswith("ds_")
    assert (dataset.filename, dataset.display_name) == ("my rows.jsonl", "Mine")
    assert (dataset.size_bytes, dataset.sha256) == (len(ROWS), SHA256)
    assert dataset.path == f"datasets/{dataset.id}/my rows.jsonl"
    assert (room.root / "default" / dataset.path).read_bytes() == ROWS
    answer = await room.stub.GetDataset(api.GetDatasetRequest(dataset_id=dataset.id))
    assert answer.dataset == dataset


async def test_twenty_mebibytes_go_through_flat_memory(room: Room) -> None:
    """A gateway that gathered uploads in memory would be killed by the first large file."""
    data = bytes(range(256)) * (20 << 12)
    await room.uploaded()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = await room.stub.UploadDataset(message for message in [head(), *chunks(data, 64 << 10)])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert answer.dataset.sha256 == hashlib.sha256(data).hexdigest()
    assert (room.root / "default" / answer.dataset.path).read_bytes() == data
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


async def test_a_wrong_header_is_refused_with_every_field(room: Room) -> None:
    """A caller corrects all errors at once instead of one per attempt."""
    for header, fields in WRONG_HEADERS:
        found = await room.refused(head(**header), *chunks(ROWS))
        assert (found.code, found.reason) == (INVALID, "INVALID_HEADER")
        assert list(found.fields) == fields


async def test_an_unknown_ending_is_told_the_known_ones(room: Room) -> None:
    for name in ("rows.xlsx", "jsonl", "rows.parquet.gz"):
        found = await room.refused(head(filename=name), *chunks(ROWS))
        assert (found.code, found.reason, found.fields) == (INVALID, "UNSUPPORTED_FILE", ("header.filename",))
        assert name in found.message
        assert ".jsonl" in found.message


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "HEADER_EXPECTED"),
        ([api.UploadDatasetRequest()], "HEADER_EXPECTED"),
        (chunks(ROWS), "HEADER_EXPECTED"),
        ([head()], "EMPTY_FILE"),
        ([head(), api.UploadDatasetRequest(chunk=b"")], "EMPTY_FILE"),
        ([head(size_bytes=0)], "EMPTY_FILE"),
        ([head(), *chunks(ROWS), head()], "CHUNK_EXPECTED"),
        ([head(), *chunks(ROWS), api.UploadDatasetRequest()], "CHUNK_EXPECTED"),
        ([head(), *chunks(b"x" * ((1 << 20) + 1), 2 << 20)], "CHUNK_TOO_LARGE"),
        ([head(size_bytes=len(ROWS) + 1), *chunks(ROWS)], "SIZE_MISMATCH"),
        ([head(size_bytes=len(ROWS) - 1), *chunks(ROWS)], "SIZE_MISMATCH"),
        ([head(sha256="0" * 64), *chunks(ROWS)], "SHA256_MISMATCH"),
    ],
)
async def test_a_malformed_stream_leaves_nothing(
    room: Room, messages: list[api.UploadDatasetRequest], reason: str
) -> None:
    """Half a file must never be trained on, nor fill the disk."""
    found = await room.refused(*messages)
    assert (found.code, found.reason) == (INVALID, reason)


async def test_the_operators_limit_holds_whether_announced_or_not(room: Room) -> None:
    """Otherwise one caller fills the disk of all."""
    for messages in ([head(size_bytes=LIMIT + 1)], [head(), *chunks(b"x" * (LIMIT + 1))]):
        found = await room.refused(*messages)
        assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DATASET_TOO_LARGE")
        assert found.metadata["max_bytes"] == str(LIMIT)


async def test_without_a_probe_nobody_pretends_to_have_looked(room: Room) -> None:
    """A hollow success would have callers believe that their rows were checked."""
    source = DataSource(dataset=(await room.uploaded()).id)
    for call, empty in (
        (room.stub.ValidateDataset, api.ValidateDatasetRequest),
        (room.stub.PreviewDataset, api.PreviewDatasetRequest),
    ):
        found = await refusal(call(empty()))
        assert (found.code, found.fields) == (INVALID, ("source.dataset", "base_model"))
        found = await refusal(call(empty(source=source, base_model="smollm2-135m")))
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_PROBE")
        found = await refusal(call(empty(source=DataSource(dataset="ds_other"), base_model="smollm2-135m")))
        assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "DATASET_NOT_FOUND")


@pytest.mark.parametrize("cut_after", [0, 1, 5])
async def test_a_cut_upload_leaves_nothing(room: Room, cut_after: int) -> None:
    """A cut connection must not leave a dataset that only looks complete."""
    sent = asyncio.Event()

    async def messages() -> AsyncIterator[api.UploadDatasetRequest]:
        yield head()
        for chunk in list(chunks(bytes(6 << 20)))[:cut_after]:
            yield chunk
        sent.set()
        await asyncio.Event().wait()

    call = room.stub.UploadDataset(messages())
    await asyncio.wait_for(sent.wait(), 10)
    if cut_after == 5:
        # The first batch is on disk by now or about to be: what is cut is a file, not only a stream.
        await until(lambda: bool(room.files()))
    call.cancel()
    # A call after the cut is answered after its handler was cancelled; the rest is waited for.
    await room.stub.ListDatasets(api.ListDatasetsRequest())
    await until(lambda: not room.files())
    assert await room.nothing_left()


LONG = bytes(range(256)) * (5 << 12)
"""Five chunks of 1 MiB."""
LONG_SHA256 = hashlib.sha256(LONG).hexdigest()
KNOWN: dict[str, Any] = {"request_id": "r1", "size_bytes": len(LONG), "sha256": LONG_SHA256}
FOLLOWS: dict[str, Any] = {"request_id": "r1", "size_bytes": len(LONG), "sha256_follows": True}


async def cut(room: Room, data: bytes, *, arrived: bool = True, **header: Any) -> int:
    """An upload that breaks off after `data`, which has `arrived` by then or may be on its way; returns what is there
    of it afterwards."""
    sent = asyncio.Event()

    async def messages() -> AsyncIterator[api.UploadDatasetRequest]:
        yield head(**header)
        for chunk in chunks(data):
            yield chunk
        sent.set()
        await asyncio.Event().wait()

    call = room.stub.UploadDataset(messages())
    await asyncio.wait_for(sent.wait(), 10)
    if arrived:
        size = header.get("offset", 0) + len(data)
        await until(lambda: any(path.stat().st_size == size for path in room.files()))
    call.cancel()
    # A call after the cut is answered after its handler was cancelled.
    await room.stub.ListDatasets(api.ListDatasetsRequest())
    await until(lambda: not open_below(room.root))
    name, sha256 = header.get("request_id") or "none", header.get("sha256", "")
    return int((await room.stub.GetUpload(api.GetUploadRequest(request_id=name, sha256=sha256))).received_bytes)


@pytest.mark.parametrize("header", [KNOWN, FOLLOWS])
@pytest.mark.parametrize("arrived", [True, False])
@AT_ONCE
async def test_a_cut_upload_goes_on_where_it_was_cut(room: Room, header: dict[str, Any], arrived: bool) -> None:
    """A connection that breaks near the end must not cost a second upload of two gigabytes."""
    rng = random.Random(7)  # noqa: S311 - where to cut
    offset = 0
    for _ in range(3):
        end = rng.randint(offset, len(LONG) - 1)
        received = await cut(room, LONG[offset:end], arrived=arrived, offset=offset, **header)
        # Chunks in flight when the stream broke may be lost; chunks that had arrived are not.
        assert received == end if arrived else offset <= received <= end
        offset = received
    tail = [api.UploadDatasetRequest(sha256=LONG_SHA256)] if "sha256_follows" in header else []
    answer = await room.upload(head(offset=offset, **header), *chunks(LONG[offset:]), *tail)
    assert (answer.dataset.size_bytes, answer.dataset.sha256) == (len(LONG), LONG_SHA256)
    assert [path.read_bytes() for path in room.files()] == [LONG]
    request = api.GetUploadRequest(request_id="r1", sha256=header.get("sha256", ""))
    assert (await room.stub.GetUpload(request)).dataset == answer.dataset


@AT_ONCE
async def test_only_the_very_end_of_what_is_there_is_gone_on_with(room: Room) -> None:
    """Bytes sent twice or left out would be found at the end only, hours later."""
    received = await cut(room, LONG[: 3 << 20], **KNOWN)
    assert received > 0
    for offset in {1, received - 1, received + 1, len(LONG)} - {received}:
        found = await refusal(room.upload(head(offset=offset, **KNOWN)))
        assert (found.code, found.reason) == (grpc.StatusCode.OUT_OF_RANGE, "WRONG_OFFSET")
        assert found.metadata["received_bytes"] == str(received)
    found = await refusal(room.upload(head(offset=5, **{**KNOWN, "request_id": "unknown"})))
    assert found.metadata["received_bytes"] == "0"
    assert len(room.files()) == 1
    assert (await room.uploaded(LONG, **KNOWN)).sha256 == LONG_SHA256
    assert len(room.files()) == 1


async def test_an_offset_without_an_identity_is_refused(room: Room) -> None:
    for header in ({}, {"request_id": "r1", "size_bytes": 5}, {"sha256": SHA256, "size_bytes": 5}):
        found = await room.refused(head(offset=1, **header))
        assert (found.code, found.fields) == (INVALID, ("header.offset",))


@AT_ONCE
async def test_damage_to_what_is_held_is_found_and_dropped(room: Room) -> None:
    """A resumed upload is hashed from its first byte, including the part stored a day ago."""
    received = await cut(room, LONG[: 3 << 20], **KNOWN)
    (partial,) = room.files()
    partial.write_bytes(b"?" + partial.read_bytes()[1:])
    found = await refusal(room.upload(head(offset=received, **KNOWN), *chunks(LONG[received:])))
    assert (found.code, found.reason) == (INVALID, "SHA256_MISMATCH")
    assert await room.nothing_left()
    assert (await room.stub.GetUpload(api.GetUploadRequest(request_id="r1", sha256=LONG_SHA256))).received_bytes == 0


@pytest.mark.parametrize("header", [{"request_id": "r1"}, {"size_bytes": len(LONG), "sha256": LONG_SHA256}])
@AT_ONCE
async def test_a_cut_upload_that_nobody_can_name_leaves_nothing(room: Room, header: dict[str, Any]) -> None:
    await cut(room, LONG[: 3 << 20], **{"request_id": "", **header})
    assert await room.nothing_left()


@AT_ONCE
async def test_two_streams_at_once_make_one_dataset(room: Room) -> None:
    """A client whose old connection is not known to be dead yet must not have two writers mix their bytes."""
    started, go_on = asyncio.Event(), asyncio.Event()

    async def messages() -> AsyncIterator[api.UploadDatasetRequest]:
        yield head(**KNOWN)
        for number, chunk in enumerate(chunks(LONG)):
            yield chunk
            if number == 1:
                started.set()
                await go_on.wait()

    first = asyncio.ensure_future(room.stub.UploadDataset(messages()))
    await asyncio.wait_for(started.wait(), 10)
    await until(lambda: bool(room.files()))
    for offset in (0, 1 << 20):
        # No chunks: grpc.aio loses the status of a call that ends while it sends.
        found = await refusal(room.upload(head(offset=offset, **KNOWN)))
        assert (found.code, found.reason) == (grpc.StatusCode.ABORTED, "UPLOAD_IN_PROGRESS")
    go_on.set()
    dataset = (await first).dataset
    assert (await room.upload(head(**KNOWN))).dataset == dataset
    assert len(await room.rows()) == len(room.files()) == 1


@pytest.mark.parametrize("limits", [UploadLimits(LIMIT, stall_seconds=0.1)])
async def test_a_stream_that_hangs_does_not_hold_its_upload_for_ever(room: Room) -> None:
    """Its caller's next stream would be refused until the first one's connection is known to be dead."""

    async def messages() -> AsyncIterator[api.UploadDatasetRequest]:
        yield head(**KNOWN)
        yield chunks(LONG)[0]
        await asyncio.Event().wait()

    found = await refusal(room.stub.UploadDataset(messages()))
    assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "UPLOAD_STALLED")
    answer = await room.upload(head(offset=1 << 20, **KNOWN), *chunks(LONG[1 << 20 :]))
    assert answer.dataset.sha256 == LONG_SHA256


@AT_ONCE
async def test_what_is_left_of_cut_uploads_goes_after_a_day(room: Room) -> None:
    """A gateway that runs for months must not need a restart to free the disk."""
    await cut(room, LONG[: 3 << 20], **KNOWN)
    await cut(room, LONG[: 2 << 20], **{**KNOWN, "request_id": "r2"})
    old, _ = sorted(room.files(), key=lambda path: path.stat().st_size)
    yesterday = time.time() - 90_000
    os.utime(old, (yesterday, yesterday))
    sweeping = asyncio.ensure_future(sweep_for_ever(ArtifactStore(f"file://{room.root}")))
    await until(lambda: not old.exists())
    sweeping.cancel()
    received = [
        (await room.stub.GetUpload(api.GetUploadRequest(request_id=name, sha256=LONG_SHA256))).received_bytes
        for name in ("r1", "r2")
    ]
    assert received == [3 << 20, 0]


@AT_ONCE
async def test_another_gateway_goes_on_with_the_first_ones_upload(room: Room, passthrough: Passthrough) -> None:
    received = await cut(room, LONG[: 3 << 20], **KNOWN)
    other = Datasets(room.database, ArtifactStore(f"file://{room.root}"), UploadLimits(LIMIT), passthrough)
    async with (
        serving(api, "DatasetService", add_to_server, other) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = DatasetServiceStub(channel)
        request = api.GetUploadRequest(request_id="r1", sha256=LONG_SHA256.upper())
        assert (await stub.GetUpload(request)).received_bytes == received
        answer = await stub.UploadDataset(iter([head(offset=received, **KNOWN), *chunks(LONG[received:])]))
    assert answer.dataset.sha256 == LONG_SHA256


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        ([], "SHA256_EXPECTED"),
        ([api.UploadDatasetRequest(sha256="0" * 64)], "SHA256_MISMATCH"),
        ([api.UploadDatasetRequest(sha256="0")], "INVALID_SHA256"),
        ([api.UploadDatasetRequest(sha256=LONG_SHA256), *chunks(b"x")], "CHUNK_UNEXPECTED"),
    ],
)
async def test_a_sha256_that_follows_is_held_to(room: Room, tail: list[api.UploadDatasetRequest], reason: str) -> None:
    """A stream that breaks right before it must not count as complete."""
    found = await refusal(room.upload(head(**FOLLOWS), *chunks(LONG), *tail))
    assert (found.code, found.reason) == (INVALID, reason)
    assert not await room.rows()
    # Only what may still become right is kept.
    assert len(room.files()) == (1 if reason == "SHA256_EXPECTED" else 0)


async def test_a_sha256_nobody_announced_is_refused(room: Room) -> None:
    found = await room.refused(head(), *chunks(ROWS), api.UploadDatasetRequest(sha256=SHA256))
    assert found.reason == "CHUNK_EXPECTED"
    found = await room.refused(head(sha256=SHA256, sha256_follows=True))
    assert found.fields == ("header.sha256_follows",)


async def test_an_upload_is_asked_for_by_a_name(room: Room) -> None:
    for request in (api.GetUploadRequest(), api.GetUploadRequest(request_id="r", sha256="x")):
        found = await refusal(room.stub.GetUpload(request))
        assert (found.code, found.reason) == (INVALID, "INVALID_REQUEST")
    assert await room.stub.GetUpload(api.GetUploadRequest(request_id="r")) == api.GetUploadResponse()
    await room.uploaded(request_id="r")
    found = await refusal(room.stub.GetUpload(api.GetUploadRequest(request_id="r", sha256="0" * 64)))
    assert found.reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("header", [{}, KNOWN])
async def test_a_full_disk_is_said_and_leaves_nothing(room: Room, header: dict[str, Any]) -> None:
    """Otherwise unusable files keep the disk full, for trainings too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # A full disk shows in the same way as this limit: a write stores fewer bytes than it was given.
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, limits[1]))
        found = await refusal(room.upload(head(**header), *chunks(LONG)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL")
    assert await room.nothing_left()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - files and rows announce nothing
            await asyncio.sleep(0.01)


async def test_a_file_whose_row_can_not_be_written_is_deleted(room: Room) -> None:
    """Otherwise every failed write of the database leaks a file for good."""
    if not room.database.is_sqlite:
        pytest.skip("the trigger is written for SQLite")
    async with room.database.write() as session:
        connection = await session.connection()
        await connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON datasets BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    found = await room.refused(head(), *chunks(ROWS))
    assert found.code is grpc.StatusCode.INTERNAL
    # A resumable upload is kept: a failure of the database must not cost the caller hours of sending.
    assert (await refusal(room.upload(head(**KNOWN), *chunks(LONG)))).code is grpc.StatusCode.INTERNAL
    async with room.database.write() as session:
        await (await session.connection()).exec_driver_sql("DROP TRIGGER refuse")
    answer = await room.upload(head(offset=len(LONG), **KNOWN))
    assert answer.dataset.sha256 == LONG_SHA256
    assert [path.read_bytes() for path in room.files()] == [LONG]


async def test_the_same_request_id_makes_one_dataset(room: Room) -> None:
    """A client that retries after a lost answer gets its dataset, not a second copy."""
    first = await room.uploaded(request_id="r1")
    assert await room.uploaded(request_id="r1") == first
    assert await room.uploaded(request_id="r1", sha256=SHA256) == first
    assert (await room.uploaded(request_id="r2")).id != first.id
    assert len(await room.rows()) == len(room.files()) == 2


async def test_a_known_upload_is_answered_before_its_bytes_travel(room: Room) -> None:
    """Repeating the upload of a large file after a lost answer costs nothing."""
    first = await room.uploaded(request_id="r1")
    answer = await room.upload(head(request_id="r1", sha256=SHA256))
    assert answer.dataset == first


async def test_concurrent_uploads_of_one_request_id_make_one_dataset(room: Room) -> None:
    datasets = await asyncio.gather(*(room.uploaded(request_id="r1") for _ in range(8)))
    assert len({dataset.id for dataset in datasets}) == 1
    assert len(await room.rows()) == len(room.files()) == 1


async def test_a_request_id_with_other_bytes_is_refused(room: Room) -> None:
    """Silently answering with the older file would train on the wrong rows."""
    first = await room.uploaded(request_id="r1")
    other = ROWS + b"{}\n"
    for messages in (
        [head(request_id="r1"), *chunks(other)],
        [head(request_id="r1", sha256=hashlib.sha256(other).hexdigest())],
    ):
        found = await refusal(room.upload(*messages))
        assert (found.code, found.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
        assert first.id in found.message
    assert len(await room.rows()) == len(room.files()) == 1


@pytest.mark.parametrize("filename", ["ä" * 124 + ".jsonl", "a*[1]::b?#%.jsonl", ".jsonl"])
async def test_odd_but_legal_names_are_kept(room: Room, filename: str) -> None:
    """Callers name files as they like; none of it reaches a shell or a glob."""
    dataset = await room.uploaded(filename=filename)
    assert dataset.filename == filename
    assert (room.root / "default" / dataset.path).read_bytes() == ROWS
    await room.stub.DeleteDataset(api.DeleteDatasetRequest(dataset_id=dataset.id))
    assert await room.nothing_left()


async def test_pages_meet_without_a_gap_or_a_repeat(room: Room) -> None:
    """Newest first, also when datasets come and go between two pages."""
    made = [(await room.uploaded()).id for _ in range(7)]
    listed: list[str] = []
    token = ""
    while True:
        answer = await room.stub.ListDatasets(api.ListDatasetsRequest(page_size=3, page_token=token))
        assert len(answer.datasets) <= 3
        listed += [dataset.id for dataset in answer.datasets]
        token = answer.next_page_token
        if not token:
            break
        await room.stub.DeleteDataset(api.DeleteDatasetRequest(dataset_id=listed[-1]))
        await room.uploaded()
    assert listed == sorted(made, reverse=True)


async def test_a_page_that_can_not_be_is_refused(room: Room) -> None:
    """An ignored token would send the first page again and again."""
    for size in (-1, 1001):
        found = await refusal(room.stub.ListDatasets(api.ListDatasetsRequest(page_size=size)))
        assert (found.code, found.reason, found.fields) == (INVALID, "INVALID_PAGE_SIZE", ("page_size",))
    # No base64, not ASCII, an empty list, a token of ListFineTuningJobs.
    for token in ("x", "ä", "W10=", "WyJqb2JzIiwiYSJd"):
        found = await refusal(room.stub.ListDatasets(api.ListDatasetsRequest(page_token=token)))
        assert (found.code, found.reason, found.fields) == (INVALID, "INVALID_PAGE_TOKEN", ("page_token",))


async def test_an_unknown_dataset_is_named(room: Room) -> None:
    for call in (
        room.stub.GetDataset(api.GetDatasetRequest(dataset_id="ds_nope")),
        room.stub.DeleteDataset(api.DeleteDatasetRequest(dataset_id="ds_nope")),
    ):
        found = await refusal(call)
        assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "DATASET_NOT_FOUND")
        assert "ds_nope" in found.message


@pytest.mark.parametrize("place", ["training_data", "evaluation_data", "phases"])
async def test_a_dataset_in_use_is_kept_until_its_jobs_have_ended(room: Room, place: str) -> None:
    """Deleting rows under a training would fail it, hours in."""
    dataset = await room.uploaded()
    source = DataSource(dataset=dataset.id)
    used = [TrainingPhase(training_data=[source])] if place == "phases" else [source]
    job_id = await add_job(room.database, FineTuningJobSpec(**{place: used}))  # type: ignore[arg-type]
    await add_job(room.database, FineTuningJobSpec(training_data=[DataSource(dataset="ds_other")]))
    request = api.DeleteDatasetRequest(dataset_id=dataset.id)
    found = await refusal(room.stub.DeleteDataset(request))
    assert (found.code, found.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "DATASET_IN_USE")
    assert job_id in found.message
    async with room.database.write() as session:
        job = await session.get_one(Work, job_id)
        job.state = "JOB_STATE_CANCELLED"
    await room.stub.DeleteDataset(request)
    assert await room.nothing_left()
