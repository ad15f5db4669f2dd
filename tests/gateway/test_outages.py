"""While SQL is unavailable or locked, calls return UNAVAILABLE, background loops continue, and no data is lost."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import make_url
from sqlmodel import select

from chassis.bus.event_bus import Bus
from chassis.store.artifact_store import ArtifactStore
from engine.catalogue import Catalogue
from finetuneflow.v1 import fine_tuning_service_pb2 as api
from finetuneflow.v1.fine_tuning_job_spec_pb2 import DataSource, FineTuningJobSpec
from finetuneflow.v1.fine_tuning_service_pb2_grpc import FineTuningServiceStub
from gateway.servicers.fine_tuning import FineTuning, add_to_server
from gateway.servicers.work import WorkMethods
from gateway.sql.database import Database
from gateway.sql.database_errors import DatabaseUnavailable
from gateway.sql.sqlite import BUSY_SECONDS
from gateway.sql.tables import UploadedDataset, now
from gateway.work import lifecycle
from gateway.work.dispatch import Dispatcher
from gateway.work.kinds import FINE_TUNING_JOB
from gateway.work.leases import LeaseWatch
from gateway.work.ledger import Ledger
from gateway.work.worker_requests import WorkerRequests
from tests.fakes.planning import NoTrainers
from tests.gateway.conftest import Recorder
from tests.gateway.jobs import Worker, attempts_of, job_of, log_at
from tests.gateway.serving import refusal, serving
from tests.servers.nats import NatsServer
from tests.servers.postgres import PostgresServer, binaries


class RunningGateway:
    """A gateway's pieces on one database, and a caller."""

    def __init__(self, stub: Any, ledger: Ledger, bus: Bus) -> None:
        self.stub = stub
        self.ledger = ledger
        self.acceptance = WorkerRequests(ledger, NoTrainers())
        self.bus = bus

    def create(self, request_id: str) -> Any:
        spec = FineTuningJobSpec(base_model="smollm2-135m", training_data=[DataSource(dataset="ds_1")])
        return self.stub.CreateFineTuningJob(api.CreateFineTuningJobRequest(spec=spec, request_id=request_id))

    async def create_job_id(self, request_id: str) -> str:
        return str((await self.create(request_id)).fine_tuning_job.id)

    def one_call_of_each_kind(self, job_id: str) -> list[Any]:
        """A get, a list, a verb and a create."""
        return [
            self.stub.GetFineTuningJob(api.GetFineTuningJobRequest(job_id=job_id)),
            self.stub.ListFineTuningJobs(api.ListFineTuningJobsRequest()),
            self.stub.PauseFineTuningJob(api.PauseFineTuningJobRequest(job_id=job_id)),
            self.create("another"),
        ]


@asynccontextmanager
async def running_gateway(
    url: str, nats_server: NatsServer, folder: Path, recorder: Recorder, busy_seconds: float = BUSY_SECONDS
) -> AsyncIterator[RunningGateway]:
    database = await Database.open(url, busy_seconds=busy_seconds)
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "test")
    dispatcher = Dispatcher(database, bus)
    ledger = Ledger(database, recorder.publish, dispatcher.offer, recorder.discard)
    leases = LeaseWatch(database, bus, WorkerRequests(ledger, NoTrainers()), lease_seconds=2)
    async with database.write() as session:
        session.add(
            UploadedDataset(
                id="ds_1",
                tenant="default",
                display_name="rows",
                filename="rows.jsonl",
                size_bytes=1,
                sha256="",
                path="datasets/ds_1/rows.jsonl",
                create_time=now(),
            )
        )
    methods = WorkMethods(FINE_TUNING_JOB, ledger, None, ArtifactStore(folder.as_uri()))  # type: ignore[arg-type]
    servicer = FineTuning(methods, Catalogue(folder), None)  # type: ignore[arg-type]
    loops = [asyncio.create_task(loop) for loop in (dispatcher.run(), leases.run())]
    async with (
        serving(api, "FineTuningService", add_to_server, servicer) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield RunningGateway(FineTuningServiceStub(channel), ledger, bus)
    for loop in loops:
        assert not loop.done(), f"a loop ended: {loop.exception()!r}"
        loop.cancel()
    await asyncio.wait(loops)
    await bus.close()
    await database.close()


@contextmanager
def lock_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Another process's write transaction, such as a backup or a forgotten shell."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield other
    finally:
        other.close()


async def test_create_waits_for_short_database_lock(
    nats_server: NatsServer, tmp_path: Path, recorder: Recorder
) -> None:
    path = tmp_path / "gateway.sqlite"
    async with running_gateway(f"sqlite:///{path}", nats_server, tmp_path, recorder) as gateway:
        with lock_database(path) as other:
            creating = asyncio.ensure_future(gateway.create("one"))
            await asyncio.wait([creating], timeout=2.5)
            assert not creating.done()
            other.execute("ROLLBACK")
            job_id = (await creating).fine_tuning_job.id
        assert await gateway.create_job_id("one") == job_id


@pytest.mark.parametrize("busy_seconds", [1, pytest.param(BUSY_SECONDS, marks=pytest.mark.long)])
async def test_long_database_lock_makes_all_waiting_writes_unavailable(
    nats_server: NatsServer, tmp_path: Path, recorder: Recorder, busy_seconds: float
) -> None:
    """INTERNAL errors are not retried; and writers must not wait one after the other for their time-outs."""
    path = tmp_path / "gateway.sqlite"
    async with running_gateway(f"sqlite:///{path}", nats_server, tmp_path, recorder, busy_seconds) as gateway:
        job_id = await gateway.create_job_id("one")
        worker = Worker(gateway.acceptance)
        await worker.claim((await attempts_of(gateway.ledger, job_id))[0])
        with lock_database(path):
            refused = await asyncio.gather(*(refusal(gateway.create(f"r{number}")) for number in range(4)))
            assert {(each.code, each.reason) for each in refused} == {
                (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
            }
            with pytest.raises(DatabaseUnavailable):
                await worker.report(log_at(1))
            assert (await job_of(gateway.ledger, job_id)).state == "JOB_STATE_VALIDATING", (
                "a locked database must stay readable"
            )
        assert (await worker.report(log_at(1))).next_ordinal == 1
        await gateway.create_job_id("r1")
        assert (await job_of(gateway.ledger, job_id)).failed_attempts == 0


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server that the test may stop."""
    if binaries() is None:
        pytest.skip("PostgreSQL's server is not installed")
    with PostgresServer() as server:
        yield server


async def test_unresolvable_database_host_is_an_outage() -> None:
    """A failing name server must not end a gateway."""
    database = Database(make_url("postgresql+asyncpg://ftf@no-such-host.invalid/ftf"))
    with pytest.raises(DatabaseUnavailable):
        async with database.read() as session:
            await session.exec(select(1))
    await database.close()


async def test_gateway_continues_after_postgresql_restart(
    nats_server: NatsServer, tmp_path: Path, recorder: Recorder, own_postgres: PostgresServer
) -> None:
    """Servers are patched: a job must not fail, and clients retry by themselves."""
    async with running_gateway(own_postgres.url, nats_server, tmp_path, recorder) as gateway:
        job_id = await gateway.create_job_id("one")
        worker = Worker(gateway.acceptance)
        await worker.claim((await attempts_of(gateway.ledger, job_id))[0])
        with pytest.raises(DatabaseUnavailable):
            async with gateway.ledger.decide(job_id) as decision:
                lifecycle.cancel(decision)
                await decision.session.flush()
                await asyncio.to_thread(own_postgres.stop)
        for refused in [await refusal(call) for call in gateway.one_call_of_each_kind(job_id)]:
            assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        with pytest.raises(DatabaseUnavailable):
            await worker.report(log_at(1))
        await asyncio.to_thread(own_postgres.start_again)
        assert (await worker.report(log_at(1))).next_ordinal == 1
        assert (await job_of(gateway.ledger, job_id)).state == "JOB_STATE_VALIDATING", (
            "an uncommitted change was stored"
        )
        other_id = await gateway.create_job_id("two")
        while True:
            message = await gateway.bus.work("probe", "default").next(20)
            assert message is not None, "the dispatcher did not continue"
            await message.ack()
            if message.item.job_id == other_id:
                break
        assert (await job_of(gateway.ledger, job_id)).failed_attempts == 0
