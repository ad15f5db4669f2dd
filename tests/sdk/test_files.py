import hashlib
from pathlib import Path

import pytest

from finetuneflow import Client, FailedPrecondition, IntegrityError
from finetuneflow.files import PartialFile, safe_relative_path
from tests.sdk.fake_gateway import JOB, FakeGateway

CONTENT = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(1000))


def test_a_cut_upload_is_sent_again_under_the_same_request_id(
    client: Client, gateway: FakeGateway, tmp_path: Path
) -> None:
    path = tmp_path / "big.jsonl"
    path.write_bytes(b"x" * 1_200_000)
    gateway.outages = {"UploadDataset": 2}
    seen = []
    dataset = client.datasets.upload(path, progress=lambda done, total: seen.append((done, total)))
    assert gateway.uploads[dataset.id] == path.read_bytes()
    headers = gateway.requests("UploadDataset")
    assert len(headers) == 3
    assert len({header.request_id for header in headers}) == 1
    assert seen[-1] == (1_200_000, 1_200_000)


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
