"""Shared parts of the service tests: a real server, and the details of refusals."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from chassis.errors import DETAILS_KEY
from chassis.server.grpc_server import Mount, serve
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from gateway.access.interceptor import OpenInterceptor
from gateway.identifiers import new_id
from gateway.sql.database import Database
from gateway.sql.tables import Work, now


@contextlib.asynccontextmanager
async def serving(service: Any, name: str, add: Callable[[Any, Any], None], servicer: object) -> AsyncIterator[str]:
    """A server with one service on a free port; yields its address. `service` is the `_service_pb2` module."""
    mount = Mount(service.DESCRIPTOR.services_by_name[name], add, servicer)
    server = await serve(mount, listen="127.0.0.1:0", interceptors=[OpenInterceptor()])
    try:
        yield server.address
    finally:
        await server.stop(0)


@dataclass(frozen=True)
class Refusal:
    code: grpc.StatusCode
    reason: str
    message: str
    fields: tuple[str, ...]
    metadata: dict[str, str]


async def refusal(call: Awaitable[object]) -> Refusal:
    """Returns the error of a call that must fail, with its details."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return refusal_of(error)
    raise AssertionError(f"was not refused: {answer}")


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    trailing = dict(tuple(pair) for pair in error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing[DETAILS_KEY])
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    fields = tuple(violation.field for violation in bad.field_violations)
    return Refusal(error.code(), info.reason, error.details() or "", fields, dict(info.metadata))


async def add_job(database: Database, spec: FineTuningJobSpec | None = None, **values: Any) -> str:
    """Inserts a job row as CreateFineTuningJob would; returns its id."""
    job = Work(
        **{
            "id": new_id("ftjob"),
            "tenant": "default",
            "kind": "fine_tuning_job",
            "request_sha256": "",
            "spec": (spec or FineTuningJobSpec()).SerializeToString(),
            "pool": "default",
            "max_attempts": 3,
            "state": "JOB_STATE_RUNNING",
            "stage": "STAGE_TRAINING",
            "create_time": now(),
            "update_time": now(),
            **values,
        }
    )
    async with database.write() as session:
        session.add(job)
    return job.id


def open_below(root: Path) -> list[str]:
    """Returns the files below `root` that this process, including the server in it, has open."""
    targets = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [target for target in targets if target.startswith(f"{root}/")]
