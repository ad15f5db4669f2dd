"""Compares upload and download of one large file with a bare byte stream over gRPC.

    python -m benchmarks.transfer [--mib 1024] [--rounds 5]

The bare stream sends the same messages with the same chunk size between two processes, without reading, writing or
hashing. The measured side is `client.datasets.upload` and `client.artifacts.download` with a real gateway process,
SQLite and a store on disk: read, hashed on both sides, written, synced, compared. Both take turns in one run on
one machine; with fewer than four cores, hashing takes CPU time from the stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil

from chassis.store.artifact_store import ArtifactStore
from finetuneflow import Client
from finetuneflow.chunks import CHUNK_BYTES
from finetuneflow.connection import MAX_MESSAGE_BYTES
from finetuneflow.v1 import artifact_service_pb2, dataset_service_pb2
from finetuneflow.v1.artifact_service_pb2_grpc import (
    ArtifactServiceServicer,
    ArtifactServiceStub,
    add_ArtifactServiceServicer_to_server,
)
from finetuneflow.v1.dataset_service_pb2_grpc import (
    DatasetServiceServicer,
    DatasetServiceStub,
    add_DatasetServiceServicer_to_server,
)
from gateway.identifiers import new_id
from gateway.sql.database import Database
from gateway.sql.tables import SavedArtifact, Work, now
from tests.servers.nats import NatsServer

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
]
_TARGET = 0.8


class Bare(DatasetServiceServicer, ArtifactServiceServicer):
    """Discards received chunks; sends the same chunk repeatedly."""

    async def UploadDataset(
        self, request_iterator: AsyncIterator[dataset_service_pb2.UploadDatasetRequest], context: Any
    ) -> dataset_service_pb2.UploadDatasetResponse:
        received = 0
        async for request in request_iterator:
            received += len(request.chunk)
        dataset = dataset_service_pb2.UploadDatasetResponse()
        dataset.dataset.size_bytes = received
        return dataset

    async def DownloadArtifact(
        self, request: artifact_service_pb2.DownloadArtifactRequest, context: Any
    ) -> AsyncIterator[artifact_service_pb2.DownloadArtifactResponse]:
        chunk = os.urandom(CHUNK_BYTES)
        for _ in range(int(request.artifact_id)):
            yield artifact_service_pb2.DownloadArtifactResponse(chunk=chunk)


async def serve_bare(port: int) -> None:
    server = grpc.aio.server(options=_OPTIONS)
    add_DatasetServiceServicer_to_server(Bare(), server)
    add_ArtifactServiceServicer_to_server(Bare(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def bare_upload(address: str, mib: int) -> float:
    chunk = os.urandom(CHUNK_BYTES)

    def requests() -> Iterator[dataset_service_pb2.UploadDatasetRequest]:
        for _ in range(mib):
            yield dataset_service_pb2.UploadDatasetRequest(chunk=chunk)

    with grpc.insecure_channel(address, options=_OPTIONS) as channel:
        grpc.channel_ready_future(channel).result(30)
        stub = DatasetServiceStub(channel)
        start = time.perf_counter()
        answer = stub.UploadDataset(requests())
        seconds = time.perf_counter() - start
    if answer.dataset.size_bytes != mib << 20:
        raise RuntimeError(f"{answer.dataset.size_bytes} bytes arrived")
    return seconds


def bare_download(address: str, mib: int) -> float:
    with grpc.insecure_channel(address, options=_OPTIONS) as channel:
        grpc.channel_ready_future(channel).result(30)
        stub = ArtifactServiceStub(channel)
        start = time.perf_counter()
        request = artifact_service_pb2.DownloadArtifactRequest(artifact_id=str(mib))
        received = sum(len(response.chunk) for response in stub.DownloadArtifact(request))
        seconds = time.perf_counter() - start
    if received != mib << 20:
        raise RuntimeError(f"{received} bytes arrived")
    return seconds


def upload(address: str, file: Path) -> float:
    with Client(address) as client:
        next(client.datasets.list(limit=1), None)
        start = time.perf_counter()
        dataset = client.datasets.upload(file, request_id=uuid.uuid4().hex)
        seconds = time.perf_counter() - start
        client.datasets.delete(dataset.id)
    return seconds


def download(address: str, artifact_id: str, to: Path) -> float:
    with Client(address) as client:
        next(client.datasets.list(limit=1), None)
        start = time.perf_counter()
        path = client.artifacts.download(artifact_id, to)
        seconds = time.perf_counter() - start
    path.unlink()
    return seconds


@dataclass(frozen=True)
class Run:
    """Runs one transfer in a new client process."""

    seconds: float
    client_cpu_seconds: float
    client_peak_mib: float


def client_process(what: str, *arguments: str) -> Run:
    command = [sys.executable, "-m", "benchmarks.transfer", "--client", what, *arguments]
    return Run(**json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def run_client(what: str, arguments: list[str]) -> None:
    before = time.process_time()
    match what:
        case "bare-upload":
            seconds = bare_upload(arguments[0], int(arguments[1]))
        case "bare-download":
            seconds = bare_download(arguments[0], int(arguments[1]))
        case "upload":
            seconds = upload(arguments[0], Path(arguments[1]))
        case _:
            seconds = download(arguments[0], arguments[1], Path(arguments[2]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(asdict(Run(seconds, time.process_time() - before, peak))))


async def add_artifact(database_url: str, store_url: str, file: Path) -> str:
    """Stores the file as an artifact of a job; returns the artifact's id."""
    job_id, artifact_id = new_id("ftjob"), new_id("ar")
    stored = ArtifactStore(store_url).put_file(file, f"default/jobs/{job_id}/package.bin")
    job = Work(
        id=job_id,
        kind="fine_tuning_job",
        tenant="default",
        request_sha256="",
        spec=b"",
        pool="default",
        max_attempts=1,
        state="JOB_STATE_SUCCEEDED",
        stage="STAGE_EXPORT",
        create_time=now(),
        update_time=now(),
    )
    artifact = SavedArtifact(
        id=artifact_id,
        tenant="default",
        work_id=job_id,
        name="package.bin",
        kind="export_file",
        path=f"jobs/{job_id}/package.bin",
        sha256=stored.sha256,
        size_bytes=stored.size_bytes,
        media_type="application/octet-stream",
        create_time=now(),
    )
    database = await Database.open(database_url)
    async with database.write() as session:
        session.add(job)
        await session.flush()
        session.add(artifact)
    await database.close()
    return artifact_id


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ready(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(60)


def peak_mib(pid: int) -> float:
    """Returns the peak memory of a process since `forget_peak`."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def measure(folder: Path, mib: int, rounds: int) -> None:
    file = folder / "rows.jsonl"
    with file.open("wb") as sink:
        for _ in range(mib):
            sink.write(os.urandom(1 << 20))
    (folder / "nats").mkdir()
    nats = NatsServer(folder / "nats")
    nats.start()
    address, bare = (f"127.0.0.1:{free_port()}" for _ in range(2))
    environment = {
        **os.environ,
        "FTF_HOME": str(folder / "home"),
        **nats.environment("gateway"),
        "FTF_GATEWAY_INSECURE": "true",
        "FTF_GATEWAY_LISTEN": address,
        "FTF_LOG_LEVEL": "WARNING",
    }
    servers = [
        subprocess.Popen([sys.executable, "-m", "gateway"], env=environment),
        subprocess.Popen([sys.executable, "-m", "benchmarks.transfer", "--serve-bare", bare.rpartition(":")[2]]),
    ]
    try:
        ready(address)
        ready(bare)
        home = folder / "home"
        artifact = asyncio.run(
            add_artifact(f"sqlite:///{home / 'gateway.sqlite'}", (home / "artifacts").as_uri(), file)
        )
        gateway = servers[0].pid
        quiet = peak_mib(gateway)
        done: dict[str, list[Run]] = defaultdict(list)
        server_cpu: dict[str, list[float]] = defaultdict(list)
        server_peak: dict[str, float] = {}
        (folder / "to").mkdir()
        runs = {
            "bare-upload": (bare, str(mib)),
            "upload": (address, str(file)),
            "bare-download": (bare, str(mib)),
            "download": (address, artifact, str(folder / "to")),
        }
        for _ in range(rounds):
            for what, arguments in runs.items():
                server = servers[what.startswith("bare")].pid
                forget_peak(server)
                before = cpu_seconds(server)
                done[what].append(client_process(what, *arguments))
                server_cpu[what].append(cpu_seconds(server) - before)
                server_peak[what] = max(server_peak.get(what, 0.0), peak_mib(server))
    finally:
        for process in servers:
            process.send_signal(signal.SIGTERM)
        for process in servers:
            process.wait()
        nats.stop()
    print(f"{mib} MiB, chunks of {CHUNK_BYTES >> 10} KiB, medians of {rounds}, {os.cpu_count()} cores")
    print(f"gateway before any transfer: peak memory {quiet:.0f} MiB")
    for what in ("upload", "download"):
        seconds = {name: statistics.median(run.seconds for run in done[name]) for name in (what, f"bare-{what}")}
        ratio = seconds[f"bare-{what}"] / seconds[what]
        print(f"{what}: {ratio:.2f}x of a bare stream (wanted: at least {_TARGET}x)")
        for name, median in seconds.items():
            client_cpu = statistics.median(run.client_cpu_seconds for run in done[name])
            print(
                f"  {name:13} {mib / median:5.0f} MiB/s; processor seconds client {client_cpu:.2f}, "
                f"server {statistics.median(server_cpu[name]):.2f}; peak memory client "
                f"{max(run.client_peak_mib for run in done[name]):.0f} MiB, server {server_peak[name]:.0f} MiB; all: "
                + " ".join(f"{run.seconds:.2f}" for run in done[name])
                + " s"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="folder of the files; default: a temporary folder")
    parser.add_argument("--serve-bare", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--client", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_bare:
        asyncio.run(serve_bare(arguments.serve_bare))
    elif arguments.client:
        run_client(arguments.client[0], arguments.client[1:])
    else:
        with tempfile.TemporaryDirectory(prefix="ftf-transfer-", dir=arguments.folder) as folder:
            measure(Path(folder), arguments.mib, arguments.rounds)


if __name__ == "__main__":
    main()
