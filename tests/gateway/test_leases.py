"""Claims without heartbeats expire; others do not."""

import asyncio

import pytest

from chassis.bus.event_bus import Bus
from gateway.sql.database import Database
from gateway.work.leases import LeaseWatch
from gateway.work.ledger import Ledger
from gateway.work.worker_requests import WorkerRequests
from tests.gateway.conftest import Recorder
from tests.gateway.jobs import Worker, create, job_of, running
from tests.servers.nats import NatsServer


async def test_claim_expires_only_without_heartbeats(
    database: Database, bus: Bus, ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    silent_id = await create(ledger)
    silent = Worker(acceptance, "a" * 32)
    await silent.claim(recorder.offered[-1])
    beating_id = await create(ledger)
    beating = Worker(acceptance, "b" * 32)
    await beating.claim(recorder.offered[-1])
    watch = LeaseWatch(database, bus, acceptance, lease_seconds=2)
    async with running(watch.run()), asyncio.timeout(20):
        while (await job_of(ledger, silent_id)).failed_attempts == 0:
            await beating.report()
    assert (await job_of(ledger, silent_id)).state == "JOB_STATE_VALIDATING"
    assert (await job_of(ledger, beating_id)).failed_attempts == 0


async def test_no_claim_expires_while_broker_is_down(
    database: Database,
    bus: Bus,
    ledger: Ledger,
    acceptance: WorkerRequests,
    recorder: Recorder,
    nats_server: NatsServer,
) -> None:
    job_id = await create(ledger)
    worker = Worker(acceptance)
    await worker.claim(recorder.offered[-1])
    watch = LeaseWatch(database, bus, acceptance, lease_seconds=1)
    nats_server.stop()
    async with running(watch.run()):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(4):
                await asyncio.Event().wait()
    assert (await job_of(ledger, job_id)).failed_attempts == 0
