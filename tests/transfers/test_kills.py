"""Uploads and downloads whose gateway, process or disk fails."""

import hashlib
import itertools
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetuneflow import Client, ResourceExhausted
from gateway.identifiers import new_id
from gateway.sql.database import Database
from gateway.sql.tables import SavedArtifact, now
from tests.gateway.serving import add_job
from tests.transfers.conftest import Gateways

MIB = 1 << 20
SIZE = 48 * MIB
# Bytes that a killed gateway may lose: two batches in its memory, and the bytes in flight.
IN_MEMORY = 24 * MIB


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(random.Random(str(tmp_path)).randbytes(SIZE))  # noqa: S311 - bytes to be sent
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def call_once_at(at: int, act: Callable[[], object], seen: list[int]) -> Callable[[int, int], None]:
    """Returns a progress callback that calls `act` once `at` bytes are transferred."""

    def progress(done: int, total: int) -> None:
        if done >= at and not any(earlier >= at for earlier in seen):
            act()
        seen.append(done)

    return progress


def resume_positions(seen: list[int]) -> list[int]:
    """Returns the positions from which a transfer was resumed, which are those where its progress fell back."""
    return [now for before, now in itertools.pairwise(seen) if now < before]


def delete_dataset(client: Client, dataset_id: str) -> None:
    client.datasets.delete(dataset_id)
    assert not list(client.datasets.list())


def test_upload_continues_after_gateway_restart(gateways: Gateways, file: Path) -> None:
    """The gateway is killed late and started again: the caller sees no error, and few bytes are sent twice."""
    revived = gateways.first.restart_when_killed()
    seen: list[int] = []
    with Client(gateways.first.address) as client:
        dataset = client.datasets.upload(file, progress=call_once_at(SIZE - 16 * MIB, gateways.first.kill, seen))
        revived.join()
        assert dataset.sha256 == sha256(file)
        assert [sha256(path) for path in gateways.datasets()] == [dataset.sha256]
        assert gateways.partial() == []
        assert resume_positions(seen)[0] >= SIZE - 16 * MIB - IN_MEMORY
        delete_dataset(client, dataset.id)


def test_upload_continues_at_the_other_gateway(gateways: Gateways, file: Path) -> None:
    """Both share the store, so both have the received bytes."""
    seen: list[int] = []
    with Client(f"{gateways.first.address},{gateways.second.address}") as client:
        dataset = client.datasets.upload(file, progress=call_once_at(SIZE - 16 * MIB, gateways.first.kill, seen))
        gateways.first.start()
        assert [sha256(path) for path in gateways.datasets()] == [dataset.sha256] == [sha256(file)]
        assert resume_positions(seen)[0] >= SIZE - 16 * MIB - IN_MEMORY
        delete_dataset(client, dataset.id)


@pytest.mark.parametrize(
    "place",
    [
        "upload.received",
        pytest.param("store.synced", marks=pytest.mark.long),
        pytest.param("store.renamed", marks=pytest.mark.long),
        "dataset.stored",
    ],
)
def test_gateway_killed_at_end_of_upload_makes_one_dataset(gateways: Gateways, file: Path, place: str) -> None:
    """Between storing the file and its row, the dataset must neither be lost nor created twice."""
    (gateways.first.armed / place).write_text("kill")
    revived = gateways.first.restart_when_killed()
    with Client(gateways.first.address) as client:
        dataset = client.datasets.upload(file)
        revived.join()
        assert [listed.id for listed in client.datasets.list()] == [dataset.id]
        stored = gateways.home / "artifacts" / "default" / dataset.proto.path
        assert sha256(stored) == dataset.sha256 == sha256(file)
        delete_dataset(client, dataset.id)
    # A file that was renamed but has no database row stays: a database that was restored from an older copy, or is
    # empty by mistake, must not make a gateway delete all files.
    for path in gateways.datasets():
        path.unlink()


def test_upload_ends_with_reason_when_disk_becomes_full(gateways: Gateways, file: Path) -> None:
    """The caller can act on the reason."""
    with gateways.second.disk_limited_to(20 * MIB), Client(gateways.second.address) as client:
        with pytest.raises(ResourceExhausted) as caught:
            client.datasets.upload(file)
        assert caught.value.reason == "STORE_FULL"
        assert not list(client.datasets.list())
    assert gateways.partial() == gateways.datasets() == []


UPLOAD = """
import os, signal, sys
from finetuneflow import Client

def progress(done, total):
    print(done, flush=True)
    if done >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

with Client(sys.argv[1]) as client:
    print(client.datasets.upload(sys.argv[2], progress=progress).sha256)
"""


def test_another_process_resumes_upload(gateways: Gateways, file: Path) -> None:
    """A laptop's battery is empty; the same command continues the next morning."""

    def upload(die_at: int) -> list[str]:
        command = [sys.executable, "-c", UPLOAD, gateways.second.address, str(file), str(die_at)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout.split()

    assert int(upload(SIZE - 4 * MIB)[-1]) < SIZE
    *seen, digest = upload(SIZE + 1)
    assert digest == sha256(file)
    assert int(seen[0]) >= SIZE - 4 * MIB - IN_MEMORY
    with Client(gateways.second.address) as client:
        (dataset,) = client.datasets.list()
        delete_dataset(client, dataset.id)


async def create_artifact(gateways: Gateways, file: Path) -> str:
    """Creates the file's artifact as a job would; returns the artifact's id."""
    database = await Database.open(gateways.database_url)
    job_id = await add_job(database)
    stored = gateways.store.put_file(file, f"default/jobs/{job_id}/package.zip")
    row = SavedArtifact(
        id=new_id("ar"),
        tenant="default",
        work_id=job_id,
        name="package.zip",
        kind="export_file",
        path=f"jobs/{job_id}/package.zip",
        sha256=stored.sha256,
        size_bytes=stored.size_bytes,
        media_type="application/zip",
        create_time=now(),
    )
    async with database.write() as session:
        session.add(row)
    await database.close()
    return row.id


async def test_download_continues_after_gateway_restart(gateways: Gateways, file: Path, tmp_path: Path) -> None:
    artifact_id = await create_artifact(gateways, file)
    revived = gateways.first.restart_when_killed()
    seen: list[int] = []
    with Client(gateways.first.address) as client:
        progress = call_once_at(SIZE // 3, gateways.first.kill, seen)
        path = client.artifacts.download(artifact_id, tmp_path / "package.zip", progress=progress)
    revived.join()
    assert sha256(path) == sha256(file)
    # Bytes that were downloaded are kept: a download never falls back.
    assert resume_positions(seen) == []


DOWNLOAD = """
import os, signal, sys
from finetuneflow import Client

def progress(done, total):
    print(done, flush=True)
    if done >= int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

with Client(sys.argv[1]) as client:
    client.artifacts.download(sys.argv[2], sys.argv[3], progress=progress)
"""


async def test_another_process_resumes_download(gateways: Gateways, file: Path, tmp_path: Path) -> None:
    artifact_id = await create_artifact(gateways, file)
    target = tmp_path / "package.zip"

    def download(die_at: int) -> list[int]:
        command = [sys.executable, "-c", DOWNLOAD, gateways.second.address, artifact_id, str(target), str(die_at)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return [int(line) for line in done.stdout.split()]

    last = download(SIZE // 2)[-1]
    assert not target.exists()
    assert download(SIZE + 1)[0] > last
    assert sha256(target) == sha256(file)
    assert names(tmp_path) == ["package.zip", "rows.jsonl"]
