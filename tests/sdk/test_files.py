import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetuneflow import (
    Client,
    FailedPrecondition,
    IntegrityError,
    InvalidArgument,
    ServerUnreachable,
    uploading,
)
from finetuneflow.chunks import CHUNK_BYTES, chunk_of, frame
from finetuneflow.files import PartialFile, safe_relative_path
from finetuneflow.v1.artifact_service_pb2 import DownloadArtifactResponse
from finetuneflow.v1.dataset_service_pb2 import UploadDatasetRequest
from tests.fakes.gateway import JOB, FakeGateway

CONTENT = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(1000))


def test_a_cut_upload_goes_on_where_it_was_cut(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    path.write_bytes(CONTENT * 100)
    size = len(CONTENT) * 100
    gateway.outages = {"UploadDataset": 1}
    gateway.cut_upload_after = [1, 1 << 20]
    seen = []
    dataset = client.datasets.upload(path, progress=lambda done, total: seen.append((done, total)))
    assert gateway.uploads[dataset.id] == path.read_bytes()
    headers = gateway.requests("UploadDataset")
    assert [header.offset for header in headers] == [0, 0, 1 << 20, 2 << 20]
    assert len({header.request_id for header in headers}) == 1
    assert seen[-1] == (size, size)
    assert [done for done, _ in seen if done < 1 << 20] == []


def test_the_same_rows_again_are_the_same_dataset(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    """A script that is run twice doesn't fill the server's disk; other rows or another name are another dataset."""
    first, second = tmp_path / "a" / "rows.jsonl", tmp_path / "b" / "rows.jsonl"
    for path in (first, second):
        path.parent.mkdir()
        path.write_bytes(CONTENT)
    dataset = client.datasets.upload(first)
    assert client.datasets.upload(second).id == dataset.id
    assert len(gateway.requests("UploadDataset")) == 1
    second.write_bytes(CONTENT + b"more")
    others = [client.datasets.upload(second).id, client.datasets.upload(first, display_name="mine").id]
    assert len({dataset.id, *others}) == 3


def test_a_large_file_is_known_by_what_the_disk_says_of_it(
    client: Client, gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for a hash before the first byte; and yet other bytes are never taken for the same."""
    monkeypatch.setattr(uploading, "_KNOWN_BY_CONTENT_BYTES", 0)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(CONTENT)
    state = path.stat()
    first = client.datasets.upload(path)
    assert client.datasets.upload(path).id == first.id
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    second = client.datasets.upload(path)
    assert second.id != first.id
    assert gateway.uploads[second.id] == CONTENT[::-1]


def test_what_is_held_of_another_file_is_not_gone_on_with_for_good(
    client: Client, gateway: FakeGateway, tmp_path: Path
) -> None:
    """The server finds out at the end; then the file is sent from its start."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(CONTENT)
    gateway.held["mine"] = b"?" * 1000
    dataset = client.datasets.upload(path, request_id="mine")
    assert gateway.uploads[dataset.id] == CONTENT
    assert [header.offset for header in gateway.requests("UploadDataset")] == [1000, 0]


def test_a_file_that_changes_meanwhile_is_not_uploaded(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    """Half of the old rows and half of the new would be trained on."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(CONTENT * 100)

    def scribble(done: int, total: int) -> None:
        with path.open("r+b") as file:
            file.seek(total - 1)
            file.write(b"!")

    for meddle in (scribble, lambda done, total: os.truncate(path, 1 << 20)):
        with pytest.raises((IntegrityError, OSError), match=r"changed|was cut"):
            client.datasets.upload(path, progress=meddle)
    assert gateway.uploads == {}


def test_an_upload_that_gets_nowhere_ends(
    client: Client, gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller hears of it, instead of waiting for ever."""
    monkeypatch.setattr(uploading, "_SECONDS_WITHOUT_PROGRESS", 0.2)
    gateway.outages = {"UploadDataset": 1_000}
    (tmp_path / "rows.jsonl").write_bytes(CONTENT)
    with pytest.raises(ServerUnreachable):
        client.datasets.upload(tmp_path / "rows.jsonl")


def test_a_file_that_vanishes_is_the_callers_error(client: Client, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client.datasets.upload(tmp_path / "gone.jsonl")


def test_a_cut_download_goes_on_where_it_stopped(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.files = {"export/model.bin": CONTENT}
    gateway.cut_download_after = [5000, 7500, 0]
    (path,) = client.jobs.download(JOB, tmp_path / "out")
    assert path == tmp_path / "out" / "model.bin"
    assert path.read_bytes() == CONTENT
    offsets = [request.offset for request in gateway.requests("DownloadArtifact")]
    assert offsets == [0, 5000, 12500, 12500]
    assert [p.name for p in path.parent.iterdir()] == ["model.bin"]


def test_a_later_call_uses_what_an_earlier_one_left(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.files = {"export/model.bin": CONTENT}
    part = PartialFile(tmp_path / "model.bin", hashlib.sha256(CONTENT).hexdigest())
    part.path.write_bytes(CONTENT[:8000])
    client.jobs.download(JOB, tmp_path)
    assert [request.offset for request in gateway.requests("DownloadArtifact")] == [8000]
    client.jobs.download(JOB, tmp_path)
    assert len(gateway.requests("DownloadArtifact")) == 1


def test_a_damaged_leftover_is_fetched_anew(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.files = {"export/model.bin": CONTENT}
    part = PartialFile(tmp_path / "model.bin", hashlib.sha256(CONTENT).hexdigest())
    part.path.write_bytes(b"?" * 8000)
    (path,) = client.jobs.download(JOB, tmp_path)
    assert path.read_bytes() == CONTENT


def test_other_bytes_than_named_never_get_the_name(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.files = {"export/model.bin": CONTENT}
    gateway.corrupt_downloads = 1
    with pytest.raises(IntegrityError):
        client.jobs.download(JOB, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_the_callers_to_mend(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    """Nothing that only looks complete; and with room again, what is here already is not fetched again."""
    gateway.files = {"export/model.bin": CONTENT}
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))\n"
        "from finetuneflow import Client\n"
        "Client(sys.argv[1]).jobs.download(sys.argv[2], sys.argv[3])"
    )
    arguments = [sys.executable, "-c", code, client.address, JOB, str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert "OSError" in done.stderr
    assert "File too large" in done.stderr
    assert not (tmp_path / "model.bin").exists()
    (path,) = client.jobs.download(JOB, tmp_path)
    assert path.read_bytes() == CONTENT
    assert [request.offset for request in gateway.requests("DownloadArtifact")] == [0, 9_000]


def test_an_artifact_that_became_another_is_not_mixed_with_what_is_here(
    client: Client, gateway: FakeGateway, tmp_path: Path
) -> None:
    gateway.files = {"export/report.md": CONTENT}
    (listed,) = client.artifacts.list(JOB)
    gateway.files = {"export/report.md": CONTENT[::-1]}
    with pytest.raises(IntegrityError, match="has changed"):
        client.artifacts.download(listed, tmp_path)
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, CHUNK_BYTES])
def test_chunks_on_the_wire_are_the_messages_they_stand_for(size: int) -> None:
    """Clients in other languages see nothing but the contract."""
    chunk = bytes(size)
    for message in (UploadDatasetRequest(chunk=chunk), DownloadArtifactResponse(chunk=chunk)):
        wire = message.SerializeToString()
        assert frame(chunk) == wire
        assert chunk_of(wire) == chunk
    assert chunk_of(wire + b"\x18\x01") is None
    assert chunk_of(wire[:-1]) is None


def test_only_the_export_is_downloaded_and_it_may_be_empty(
    client: Client, gateway: FakeGateway, tmp_path: Path
) -> None:
    gateway.files = {"checkpoints/x": b"1", "export/adapter/empty.txt": b"", "export/../../../etc/passwd": b"2"}
    paths = client.jobs.download(JOB, tmp_path)
    assert [path.relative_to(tmp_path) for path in paths] == [Path("adapter/empty.txt"), Path("etc/passwd")]


def test_a_job_without_an_export_says_so(client: Client, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="SUCCEEDED"):
        client.jobs.download(JOB, tmp_path)


def test_one_artifact_by_its_id(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.files = {"export/report.md": b"# report"}
    assert client.artifacts.download("ar_0", tmp_path) == tmp_path / "report.md"
    assert client.artifacts.download("ar_0", tmp_path / "other.md").read_bytes() == b"# report"


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../x", "C:\\x", "..", "a\x00b", "con:x"])
def test_a_servers_name_stays_below_the_folder(name: str, tmp_path: Path) -> None:
    target = (tmp_path / safe_relative_path(name)).resolve()
    assert target.is_relative_to(tmp_path.resolve())
    assert target != tmp_path.resolve()


def test_a_name_that_is_not_utf8_is_refused_in_a_sentence(client: Client, tmp_path: Path) -> None:
    """No message can hold it; the traceback of a codec does not say which file it is about."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    path.write_text('{"question": "q", "answer": "a"}\n')
    with pytest.raises(InvalidArgument, match=r"jsonl' is not UTF-8; rename"):
        client.datasets.upload(path)
    with pytest.raises(InvalidArgument) as caught:
        client.jobs.create(base_model="m", training_data=path)
    assert [violation.field for violation in caught.value.violations] == ["spec.training_data[0].dataset"]
