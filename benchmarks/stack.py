"""Starts the measured system as in production: nats-server, SQLite or PostgreSQL, and a gateway, each a process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil

from finetuneflow.v1 import dataset_service_pb2, fine_tuning_service_pb2
from finetuneflow.v1.dataset_service_pb2_grpc import DatasetServiceStub
from finetuneflow.v1.fine_tuning_service_pb2_grpc import FineTuningServiceStub
from standalone.guard import guarded
from standalone.ports import free_port
from tests.servers.nats import NatsServer
from tests.servers.postgres import PostgresServer

_START_SECONDS = 30.0


class Part:
    """A process of a benchmark. It writes lines of JSON to stdout and reads lines from stdin."""

    def __init__(self, module: str, *argv: object, env: dict[str, str] | None = None, log: Path | None = None) -> None:
        self.popen = subprocess.Popen(
            guarded([sys.executable, "-m", module, *map(str, argv)]),
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("ab") if log else None,
            text=True,
        )
        self.process = psutil.Process(self.popen.pid)

    def ask(self, line: str) -> Any:
        self.tell(line)
        return self.hear()

    def tell(self, line: str) -> None:
        assert self.popen.stdin
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def hear(self) -> Any:
        assert self.popen.stdout
        line = self.popen.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.popen.args!r} ended with status {self.popen.wait()}")
        return json.loads(line)

    def cpu_seconds(self) -> float:
        """Returns the CPU time used so far by the process and its children."""
        total = 0.0
        for process in (self.process, *self.process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def rss_bytes(self) -> int:
        return sum(p.memory_info().rss for p in (self.process, *self.process.children(recursive=True)))

    def stop(self) -> None:
        self.popen.terminate()
        try:
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass
class Stack:
    """A running gateway with its broker."""

    folder: Path
    nats: NatsServer
    gateway: Part
    address: str

    @property
    def env(self) -> dict[str, str]:
        """Environment variables with the address of NATS, for other processes."""
        return nats_environment(self.nats)

    def stubs(self) -> tuple[grpc.Channel, FineTuningServiceStub]:
        channel = grpc.insecure_channel(self.address)
        return channel, FineTuningServiceStub(channel)

    def create_job(self) -> str:
        """Creates a job, whose stages wait for workers; returns its id."""
        with grpc.insecure_channel(self.address) as channel:
            spec: dict[str, Any] = {
                "base_model": "smollm2-135m",
                "training_data": [{"dataset": upload_rows(channel)}],
            }
            request = fine_tuning_service_pb2.CreateFineTuningJobRequest(spec=spec)
            job_id: str = FineTuningServiceStub(channel).CreateFineTuningJob(request, timeout=30).fine_tuning_job.id
            return job_id

    def cancel_job(self, job_id: str) -> None:
        """Cancels a job, so that no later worker of this stack receives its stages."""
        with grpc.insecure_channel(self.address) as channel:
            request = fine_tuning_service_pb2.CancelFineTuningJobRequest(job_id=job_id)
            FineTuningServiceStub(channel).CancelFineTuningJob(request, timeout=30)


def nats_environment(nats: NatsServer) -> dict[str, str]:
    return {"FTF_NATS_URL": nats.url, "FTF_NATS_USER": nats.user, "FTF_NATS_PASSWORD": nats.password}


def upload_rows(channel: grpc.Channel) -> str:
    """Uploads a small dataset; returns its id."""
    rows = b'{"prompt": "a", "completion": "b"}\n' * 20

    def requests() -> Iterator[dataset_service_pb2.UploadDatasetRequest]:
        header = dataset_service_pb2.UploadDatasetHeader(filename="rows.jsonl")
        yield dataset_service_pb2.UploadDatasetRequest(header=header)
        yield dataset_service_pb2.UploadDatasetRequest(chunk=rows)

    dataset_id: str = DatasetServiceStub(channel).UploadDataset(requests(), timeout=30).dataset.id
    return dataset_id


@contextlib.contextmanager
def running(database: str = "sqlite") -> Iterator[Stack]:
    """Runs a stack; `database` is sqlite (synchronous=FULL) or postgresql (fsync on)."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ftf-bench-")))
        nats = NatsServer(folder)
        nats.start()
        stack.callback(nats.stop)
        url = f"sqlite:///{folder / 'gateway.sqlite'}"
        if database == "postgresql":
            url = stack.enter_context(PostgresServer(durable=True)).url
        address = f"127.0.0.1:{free_port()}"
        env = nats_environment(nats) | {
            "FTF_HOME": str(folder / "home"),
            "FTF_GATEWAY_INSECURE": "true",
            "FTF_GATEWAY_LISTEN": address,
            "FTF_GATEWAY_DATABASE_URL": url,
            "FTF_LOG_LEVEL": "WARNING",
        }
        gateway = stack.enter_context(Part("gateway", env=env, log=folder / "gateway.log"))
        try:
            with grpc.insecure_channel(address) as channel:
                grpc.channel_ready_future(channel).result(timeout=_START_SECONDS)
        except grpc.FutureTimeoutError:
            raise RuntimeError((folder / "gateway.log").read_text()) from None
        yield Stack(folder, nats, gateway, address)


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def wait(seconds: float) -> float:
    """Waits, and returns the measured time in seconds."""
    began = time.monotonic()
    time.sleep(seconds)
    return time.monotonic() - began
