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


def test_interrupted_upload_resumes_at_received_bytes(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
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


def test_same_content_and_name_is_the_same_dataset(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    """A script that is run twice does not fill the server's disk; other content or another name is another dataset."""
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


def test_large_file_is_identified_by_its_metadata(
    client: Client, gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hash is computed before the first byte is sent, and changed content is still detected."""
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


def test_upload_restarts_if_server_holds_bytes_of_another_file(
    client: Client, gateway: FakeGateway, tmp_path: Path
) -> None:
    """The server detects it at the end; then the file is sent from its start."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(CONTENT)
    gateway.held["mine"] = b"?" * 1000
    dataset = client.datasets.upload(path, request_id="mine")
    assert gateway.uploads[dataset.id] == CONTENT
    assert [header.offset for header in gateway.requests("UploadDataset")] == [1000, 0]


def test_file_that_changes_during_upload_is_refused(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    """A mixture of old and new rows would be trained on."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(CONTENT * 100)

    def overwrite_last_byte(done: int, total: int) -> None:
        with path.open("r+b") as file:
            file.seek(total - 1)
            file.write(b"!")

    for modify in (overwrite_last_byte, lambda done, total: os.truncate(path, 1 << 20)):
        with pytest.raises((IntegrityError, OSError), match=r"changed|was cut"):
            client.datasets.upload(path, progress=modify)
    assert gateway.uploads == {}


def test_upload_without_progress_gives_up(
    client: Client, gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets an exception instead of waiting for ever."""
    monkeypatch.setattr(uploading, "_SECONDS_WITHOUT_PROGRESS", 0.2)
    gateway.outages = {"UploadDataset": 1_000}
    (tmp_path / "rows.jsonl").write_bytes(CONTENT)
    with pytest.raises(ServerUnreachable):
        client.datasets.upload(tmp_path / "rows.jsonl")


def test_missing_file_raises_file_not_found(client: Client, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client.datasets.upload(tmp_path / "gone.jsonl")


def test_interrupted_download_resumes_at_received_bytes(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.files = {"export/model.bin": CONTENT}
    gateway.cut_download_after = [5000, 7500, 0]
    (path,) = client.jobs.download(JOB, tmp_path / "out")
    assert path == tmp_path / "out" / "model.bin"
    assert path.read_bytes() == CONTENT
    offsets = [request.offset for request in gateway.requests("DownloadArtifact")]
    assert offsets == [0, 5000, 12500, 12500]
    assert [p.name for p in path.parent.iterdir()] == ["model.bin"]


def test_later_download_resumes_partial_file(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.files = {"export/model.bin": CONTENT}
    part = PartialFile(tmp_path / "model.bin", hashlib.sha256(CONTENT).hexdigest())
    part.path.write_bytes(CONTENT[:8000])
    client.jobs.download(JOB, tmp_path)
    assert [request.offset for request in gateway.requests("DownloadArtifact")] == [8000]
    client.jobs.download(JOB, tmp_path)
    assert len(gateway.requests("DownloadArtifact")) == 1


def test_damaged_partial_file_is_downloaded_again(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.files = {"export/model.bin": CONTENT}
    part = PartialFile(tmp_path / "model.bin", hashlib.sha256(CONTENT).hexdigest())
    part.path.write_bytes(b"?" * 8000)
    (path,) = client.jobs.download(JOB, tmp_path)
    assert path.read_bytes() == CONTENT


def test_corrupt_download_leaves_no_file(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.files = {"export/model.bin": CONTENT}
    gateway.corrupt_downloads = 1
    with pytest.raises(IntegrityError):
        client.jobs.download(JOB, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_raises_and_download_can_be_resumed(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    """No file only looks complete; once there is space, received bytes are not fetched again."""
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


def test_artifact_that_changed_after_listing_is_refused(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.files = {"export/report.md": CONTENT}
    (listed,) = client.artifacts.list(JOB)
    gateway.files = {"export/report.md": CONTENT[::-1]}
    with pytest.raises(IntegrityError, match="has changed"):
        client.artifacts.download(listed, tmp_path)
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, CHUNK_BYTES])
def test_hand_encoded_chunks_equal_serialized_messages(size: int) -> None:
    """Clients in other languages rely on the contract alone."""
    chunk = bytes(size)
    for message in (UploadDatasetRequest(chunk=chunk), DownloadArtifactResponse(chunk=chunk)):
        wire = message.SerializeToString()
        assert frame(chunk) == wire
        assert chunk_of(wire) == chunk
    assert chunk_of(wire + b"\x18\x01") is None
    assert chunk_of(wire[:-1]) is None


def test_job_download_contains_only_export_files(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.files = {"checkpoints/x": b"1", "export/adapter/empty.txt": b"", "export/../../../etc/passwd": b"2"}
    paths = client.jobs.download(JOB, tmp_path)
    assert [path.relative_to(tmp_path) for path in paths] == [Path("adapter/empty.txt"), Path("etc/passwd")]


def test_download_of_job_without_export_raises(client: Client, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="SUCCEEDED"):
        client.jobs.download(JOB, tmp_path)


def test_artifact_is_downloaded_by_id(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.files = {"export/report.md": b"# report"}
    assert client.artifacts.download("ar_0", tmp_path) == tmp_path / "report.md"
    assert client.artifacts.download("ar_0", tmp_path / "other.md").read_bytes() == b"# report"


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../x", "C:\\x", "..", "a\x00b", "con:x"])
def test_artifact_name_cannot_leave_the_folder(name: str, tmp_path: Path) -> None:
    target = (tmp_path / safe_relative_path(name)).resolve()
    assert target.is_relative_to(tmp_path.resolve())
    assert target != tmp_path.resolve()


def test_file_name_that_is_not_utf8_is_refused_with_clear_error(client: Client, tmp_path: Path) -> None:
    """No message can contain it, and the codec's traceback does not name the file."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    path.write_text('{"question": "q", "answer": "a"}\n')
    with pytest.raises(InvalidArgument, match=r"jsonl' is not UTF-8; rename"):
        client.datasets.upload(path)
    with pytest.raises(InvalidArgument) as caught:
        client.jobs.create(base_model="m", training_data=path)
    assert [violation.field for violation in caught.value.violations] == ["spec.training_data[0].dataset"]
