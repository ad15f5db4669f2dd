"""Two gateway processes on one PostgreSQL and one broker: each can serve every call, and either may stop."""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from chassis.attempt.reporter import Reporter
from chassis.attempt.spool import ClaimRecord, Spool
from chassis.bus import subjects
from chassis.bus.event_bus import Bus, BusUnavailable
from chassis.events import event_of
from finetuneflow.v1 import fine_tuning_service_pb2 as api
from finetuneflow.v1.event_pb2 import Event
from finetuneflow.v1.fine_tuning_job_pb2 import FineTuningJob, JobState, Stage
from finetuneflow.v1.fine_tuning_job_spec_pb2 import DataSource, FineTuningJobSpec
from finetuneflow.v1.fine_tuning_service_pb2_grpc import FineTuningServiceStub
from finetuneflow.v1.work_pb2 import Assignment, ClaimRequest, ClaimResponse, ReportRequest, ReportResponse
from gateway.sql.database import Database
from gateway.sql.tables import UploadedDataset, now
from gateway.work.kinds import SERVICES
from standalone.guard import guarded
from standalone.ports import free_port
from tests.gateway.conftest import empty
from tests.gateway.jobs import completed_stage, log_at
from tests.servers.nats import NatsServer
from tests.servers.postgres import PostgresServer

LEASE_SECONDS = 6


class Replica:
    """A gateway process."""

    def __init__(self, name: str, url: str, nats_server: NatsServer, folder: Path, **settings: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._log = (folder / f"{name}.log").open("ab")
        environment = {
            "FTF_HOME": str(folder),
            "FTF_NODE_ID": name,
            **nats_server.environment("gateway"),
            "FTF_GATEWAY_INSECURE": "true",
            "FTF_GATEWAY_LISTEN": self.address,
            "FTF_GATEWAY_DATABASE_URL": url,
            "FTF_GATEWAY_LEASE_SECONDS": str(LEASE_SECONDS),
            **{f"FTF_GATEWAY_{key.upper()}": value for key, value in settings.items()},
        }
        self.process = subprocess.Popen(
            guarded([sys.executable, "-m", "gateway"]),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self.channel = grpc.aio.insecure_channel(self.address)
        self.stub: Any = FineTuningServiceStub(self.channel)

    async def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()
        await self.channel.close()

    async def job(self, job_id: str) -> FineTuningJob:
        request = api.GetFineTuningJobRequest(job_id=job_id)
        job: FineTuningJob = (await self.stub.GetFineTuningJob(request, wait_for_ready=True)).fine_tuning_job
        return job


@pytest.fixture
async def replicas(postgres: PostgresServer, nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[list[Replica]]:
    database = await Database.open(postgres.url)
    await empty(database)
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
    await database.close()
    started = [Replica(name, postgres.url, nats_server, tmp_path) for name in ("a", "b")]
    async with asyncio.timeout(60):
        await asyncio.gather(*(replica.channel.channel_ready() for replica in started))
    yield started
    for replica in started:
        await replica.close()


@pytest.fixture
async def buses(nats_server: NatsServer) -> AsyncIterator[dict[str, Bus]]:
    """The connection of each service, as its own user."""
    connected = {
        service: await Bus.connect(
            nats_server.url, service, nats_server.password, "worker", inbox=subjects.inbox(service)
        )
        for service in set(SERVICES.values())
    }
    yield connected
    for bus in connected.values():
        await bus.close()


class Holder:
    """A worker with one claim, which reports as every worker does."""

    def __init__(self, bus: Bus, assignment: Assignment, folder: Path) -> None:
        self.assignment = assignment
        record = ClaimRecord(
            job_id=assignment.job_id,
            tenant=assignment.tenant,
            stage=int(assignment.stage),
            attempt=assignment.attempt,
            claim_id=assignment.claim_id,
            workdir=folder,
        )
        self.reporter = Reporter(bus, Spool(folder / "spool", record), lambda _: None)
        self.running = asyncio.create_task(self.reporter.run())

    def report(self, payload: Any) -> None:
        event: Event = event_of(payload)
        event.job_id, event.stage = self.assignment.job_id, self.assignment.stage
        event.attempt = self.assignment.attempt
        self.reporter.append(event)

    async def complete(self) -> None:
        given = self.assignment
        self.report(completed_stage(given.job_id, Stage.Name(given.stage), given.attempt))
        async with asyncio.timeout(60):
            await self.running
        assert not self.reporter.stopped


async def hold(buses: dict[str, Bus], stage: str, folder: Path) -> Holder:
    """Claims the next attempt of a stage; asks as a worker does, until it is answered."""
    bus = buses[SERVICES[stage]]
    async with asyncio.timeout(60):
        while True:
            message = await bus.work(SERVICES[stage], "default").next(30)
            assert message is not None, "the job was not dispatched"
            request = ClaimRequest(
                job_id=message.item.job_id,
                stage=message.item.stage,
                attempt=message.item.attempt,
                claim_id=uuid.uuid4().hex,
                node_id="node",
            )
            subject = subjects.claim(SERVICES[stage], "default")
            repeated = False
            while True:
                try:
                    answer = await bus.request(subject, request, ClaimResponse, 2, everyone=repeated)
                    break
                except BusUnavailable:
                    repeated = True
                    await asyncio.sleep(0.05)
            await message.ack()
            if answer.HasField("assignment"):
                return Holder(bus, answer.assignment, folder)


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - changed by other processes
            await asyncio.sleep(0.02)


async def repeat_first_report_at_every_replica(bus: Bus, holder: Holder) -> None:
    """Repeats the first report, as after a lost response: every replica receives it, the first response counts."""
    given = holder.assignment
    event = event_of(log_at(1))
    event.job_id, event.stage, event.attempt = given.job_id, given.stage, given.attempt
    report = ReportRequest(job_id=given.job_id, claim_id=given.claim_id, events=[event.SerializeToString()])
    for _ in range(3):
        answer = await bus.request(subjects.report(given.job_id), report, ReportResponse, 10, everyone=True)
        assert answer.next_ordinal >= 1


def creation(request_id: str) -> api.CreateFineTuningJobRequest:
    spec = FineTuningJobSpec(base_model="smollm2-135m", training_data=[DataSource(dataset="ds_1")])
    return api.CreateFineTuningJobRequest(spec=spec, request_id=request_id)


async def watch(replicas: list[Replica], job_id: str, seen: list[int]) -> None:
    """Follows the job to its end, at the next replica with its cursor whenever a stream breaks."""
    turn = 0
    while True:
        request = api.WatchFineTuningJobRequest(job_id=job_id, after_sequence=seen[-1] if seen else 0)
        try:
            async for response in replicas[turn % len(replicas)].stub.WatchFineTuningJob(request):
                seen += [event.sequence for event in response.events]
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            turn += 1
        else:
            return


async def test_work_and_watches_continue_when_one_gateway_is_killed(
    replicas: list[Replica], buses: dict[str, Bus], tmp_path: Path
) -> None:
    """A watch that was connected to the killed gateway neither misses nor repeats an event; the job loses nothing."""
    a, b = replicas
    made = await asyncio.gather(*(each.stub.CreateFineTuningJob(creation("once")) for each in [a, b] * 3))
    assert len({answer.fine_tuning_job.id for answer in made}) == 1, "one request_id made two jobs"
    job_id = made[0].fine_tuning_job.id
    seen: list[int] = []
    watching = asyncio.create_task(watch(replicas, job_id, seen))
    await (await hold(buses, "STAGE_PREFLIGHT", tmp_path)).complete()
    trainer = await hold(buses, "STAGE_TRAINING", tmp_path)
    for step in range(1, 101):
        trainer.report(log_at(step))
    await wait_until(lambda: len(seen) >= 20)
    await repeat_first_report_at_every_replica(buses["trainer"], trainer)
    a.process.kill()
    for step in range(101, 201):
        trainer.report(log_at(step))
    await trainer.complete()
    for stage in ("STAGE_EVALUATION", "STAGE_EXPORT"):
        await (await hold(buses, stage, tmp_path)).complete()
    async with asyncio.timeout(30):
        await watching
    job = await b.job(job_id)
    assert (job.state, job.failed_attempts) == (JobState.JOB_STATE_SUCCEEDED, 0)
    assert seen == list(range(1, job.last_sequence + 1))
    assert job.progress.step == 200


async def test_urgent_job_is_claimed_first_at_either_gateway(replicas: list[Replica], buses: dict[str, Bus]) -> None:
    """The broker delivers the older jobs first, to whichever worker asks."""
    bus = buses["probe"]
    for number, replica in enumerate(replicas * 2):
        await replica.stub.CreateFineTuningJob(creation(f"{number}"))
    urgent = creation("urgent")
    urgent.spec.priority = 5
    urgent_id = (await replicas[0].stub.CreateFineTuningJob(urgent)).fine_tuning_job.id
    job = await replicas[1].job(urgent_id)
    assert (
        job.waiting == "No probe of pool 'default' is running; ask the operator to start one. 0 attempts are before it."
    )
    message = await bus.work("probe", "default").next(30)
    assert message is not None
    request = ClaimRequest(
        job_id=message.item.job_id,
        stage=message.item.stage,
        attempt=message.item.attempt,
        claim_id=uuid.uuid4().hex,
        node_id="node",
        take_next=True,
    )
    subject = subjects.claim("probe", "default")
    answer = await bus.request(subject, request, ClaimResponse, 10)
    assert answer.instead.job_id == urgent_id
    request = ClaimRequest(
        job_id=urgent_id, stage=answer.instead.stage, attempt=1, claim_id=uuid.uuid4().hex, node_id="node"
    )
    answer = await bus.request(subject, request, ClaimResponse, 10)
    assert answer.assignment.job_id == urgent_id
    assert not (await replicas[1].job(urgent_id)).waiting


@pytest.mark.long
async def test_no_claim_expires_when_one_gateway_stops_for_longer_than_a_lease(
    replicas: list[Replica], buses: dict[str, Bus], tmp_path: Path
) -> None:
    """The broker still sends it every other request; no worker may lose its claim, then or after it continues."""
    a, b = replicas
    first_id = (await b.stub.CreateFineTuningJob(creation("first"))).fine_tuning_job.id
    holder = await hold(buses, "STAGE_PREFLIGHT", tmp_path)
    a.process.send_signal(signal.SIGSTOP)
    loop = asyncio.get_running_loop()
    stopped = loop.time()
    second_id = (await b.stub.CreateFineTuningJob(creation("second"))).fine_tuning_job.id
    other = await hold(buses, "STAGE_PREFLIGHT", tmp_path)
    assert other.assignment.job_id == second_id, "work must be claimed while one gateway is stopped"
    step = 0
    while loop.time() < stopped + LEASE_SECONDS + 3:
        step = await report_one_event(holder, step + 1)
    a.process.send_signal(signal.SIGCONT)
    # It looks at its observations once a second; the reports that it was given meanwhile are old.
    while loop.time() < stopped + LEASE_SECONDS + 7:
        step = await report_one_event(holder, step + 1)
    for job_id in (first_id, second_id):
        job = await a.job(job_id)
        assert (job.state, job.failed_attempts) == (JobState.JOB_STATE_VALIDATING, 0)
    await asyncio.gather(holder.complete(), other.complete())
    assert (await a.job(first_id)).state == JobState.JOB_STATE_QUEUED


async def report_one_event(holder: Holder, step: int) -> int:
    """Has one more event accepted."""
    holder.report(log_at(step))
    await wait_until(lambda: not holder.reporter.waiting_events)
    return step
