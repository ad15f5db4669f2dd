"""READY attempts reach workers, whatever data the broker loses."""

import asyncio
from pathlib import Path

import pytest

from chassis.bus.event_bus import Bus, WorkMessage
from chassis.bus.streams import WORK_STREAM
from finetuneflow.v1.fine_tuning_job_pb2 import Stage
from finetuneflow.v1.work_pb2 import ClaimRequest, WorkItem
from gateway.sql.database import Database
from gateway.sql.tables import Attempt
from gateway.work import lifecycle
from gateway.work.dispatch import Dispatcher
from gateway.work.ledger import Ledger
from gateway.work.worker_requests import WorkerRequests
from tests.fakes.planning import NoTrainers
from tests.gateway.conftest import Recorder
from tests.gateway.jobs import Worker, a_job, attempts_of, create, running
from tests.servers.nats import NatsServer


async def next_item(bus: Bus, seconds: float = 20) -> WorkMessage:
    message = await bus.work("probe", "default").next(seconds)
    assert message is not None
    return message


async def receive_item(bus: Bus, job_id: str, attempt: int = 1) -> WorkMessage:
    """Returns the item of that attempt; acknowledges other items, which may be delivered more than once."""
    while True:
        message = await next_item(bus)
        if (message.item.job_id, message.item.attempt) == (job_id, attempt):
            return message
        await message.ack()


async def wait_for_queue_length(bus: Bus, count: int) -> None:
    """Waits until the queue has that many items."""
    async with asyncio.timeout(20), bus.jetstream() as js:
        while (await js.stream_info(WORK_STREAM)).state.messages < count:
            pass


async def create_delayed_job(ledger: Ledger, seconds: float, written_ahead: float = 0) -> str:
    """Creates a job that may not start yet, with a clock that is that many seconds ahead."""
    async with ledger.create(a_job()) as decision:
        lifecycle.open_attempt(decision, "STAGE_PREFLIGHT", delay=seconds)
        assert decision.ready is not None
        decision.ready.create_time += int(written_ahead * 1e6)
        decision.ready.not_before += int(written_ahead * 1e6)
    return decision.work.id


async def test_new_job_is_dispatched_immediately(database: Database, bus: Bus, recorder: Recorder) -> None:
    ledger = Ledger(database, recorder.publish, Dispatcher(database, bus).offer, recorder.discard)
    job_id = await create(ledger)
    assert (await next_item(bus)).item.job_id == job_id


async def test_job_created_while_broker_is_down_is_dispatched_after_reconnect(
    database: Database, bus: Bus, recorder: Recorder, nats_server: NatsServer
) -> None:
    dispatcher = Dispatcher(database, bus)
    nats_server.stop()
    job_id = await create(Ledger(database, recorder.publish, dispatcher.offer, recorder.discard))
    nats_server.restart()
    async with running(dispatcher.run()):
        assert (await next_item(bus)).item.job_id == job_id


async def test_work_is_dispatched_again_after_broker_lost_its_data(
    database: Database, bus: Bus, recorder: Recorder, nats_server: NatsServer
) -> None:
    dispatcher = Dispatcher(database, bus)
    job_id = await create(Ledger(database, recorder.publish, dispatcher.offer, recorder.discard))
    async with running(dispatcher.run()):
        nats_server.stop()
        nats_server.wipe()
        nats_server.restart()
        assert (await next_item(bus)).item.job_id == job_id


async def test_work_is_dispatched_again_after_stream_was_deleted(
    database: Database, bus: Bus, recorder: Recorder
) -> None:
    """An operator deleted the stream; no connection broke."""
    dispatcher = Dispatcher(database, bus)
    async with running(dispatcher.run()):
        job_id = await create(Ledger(database, recorder.publish, dispatcher.offer, recorder.discard))
        assert (await next_item(bus)).item.job_id == job_id
        async with bus.jetstream() as js:
            await js.delete_stream(WORK_STREAM)
        assert (await next_item(bus)).item.job_id == job_id


async def test_work_is_dispatched_after_broker_restored_old_backup(
    database: Database, bus: Bus, recorder: Recorder, nats_server: NatsServer, tmp_path: Path
) -> None:
    """The backup contains items that are done and lacks items that are READY."""
    dispatcher = Dispatcher(database, bus)
    ledger = Ledger(database, recorder.publish, dispatcher.offer, recorder.discard)
    worker = Worker(WorkerRequests(ledger, NoTrainers()))
    async with running(dispatcher.run()):
        job_id = await create(ledger)
        await wait_for_queue_length(bus, 1)
        await asyncio.to_thread(nats_server.back_up, tmp_path / "copy")
        await (await receive_item(bus, job_id)).ack()
        (attempt,) = await attempts_of(ledger, job_id)
        await worker.claim(attempt)
        await worker.fail()
        await (await receive_item(bus, job_id, attempt=2)).ack()
        await asyncio.to_thread(nats_server.roll_back, tmp_path / "copy")
        found = set()
        while found != {1, 2}:
            message = await next_item(bus)
            found.add(message.item.attempt)
            await message.ack()
        assert (await worker.claim(attempt)).refused.reason == "ENDED"


async def test_delayed_retry_is_dispatched_when_due(database: Database, bus: Bus, recorder: Recorder) -> None:
    dispatcher = Dispatcher(database, bus)
    ledger = Ledger(database, recorder.publish, dispatcher.offer, recorder.discard)
    async with running(dispatcher.run()):
        late_id = await create_delayed_job(ledger, seconds=1.5)
        prompt_id = await create(ledger)
        assert (await next_item(bus)).item.job_id == prompt_id
        await receive_item(bus, late_id)


async def test_retry_is_not_delayed_by_clock_set_back(database: Database, bus: Bus, recorder: Recorder) -> None:
    """It would otherwise wait for as long as the clock was wrong, even a year."""
    dispatcher = Dispatcher(database, bus)
    ledger = Ledger(database, recorder.publish, dispatcher.offer, recorder.discard)
    job_id = await create_delayed_job(ledger, seconds=0.5, written_ahead=3600)
    async with running(dispatcher.run()):
        await receive_item(bus, job_id)


async def test_unpublishable_item_does_not_block_others(database: Database, bus: Bus, recorder: Recorder) -> None:
    """Otherwise one invalid row would delay every later job for ever."""
    dispatcher = Dispatcher(database, bus)
    ledger = Ledger(database, recorder.publish, dispatcher.offer, recorder.discard)
    bad_id = await create(ledger)
    await (await next_item(bus)).ack()
    async with database.write() as session:
        attempt = await session.get(Attempt, (bad_id, "STAGE_PREFLIGHT", 1))
        assert attempt is not None
        attempt.stage, attempt.pool = "STAGE_TRAINING", "not a pool"
    async with running(dispatcher.run()):
        await receive_item(bus, await create(ledger))
        # One that nobody has offered yet: it comes from SQL, as the bad one does.
        await receive_item(bus, await create(Ledger(database, recorder.publish, recorder.offer, recorder.discard)))


@pytest.mark.parametrize("item", [WorkItem(job_id="ftjob_none", stage=Stage.STAGE_PREFLIGHT, attempt=1), WorkItem()])
async def test_claim_of_unknown_attempt_is_refused(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder, item: WorkItem
) -> None:
    """A refusal lets the worker drop the item; an error would have it delivered again for ever."""
    job_id = item.job_id or await create(ledger)
    for stage in (item.stage, 99):
        request = ClaimRequest(job_id=job_id, attempt=item.attempt, claim_id="a" * 32)
        request.stage = stage  # type: ignore[assignment]
        assert (await acceptance.claim(request, ("probe", "default"))).refused.reason in ("UNKNOWN", "ENDED")


async def test_claims_of_another_service_or_pool_are_refused(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    """A stolen trainer would read the data of every job."""
    await create(ledger)
    attempt = recorder.offered[-1]
    request = ClaimRequest(
        job_id=attempt.work_id, stage=Stage.Value(attempt.stage), attempt=attempt.attempt, claim_id="a" * 32
    )
    for queue in (("trainer", "default"), ("probe", "gpu")):
        assert (await acceptance.claim(request, queue)).refused.reason == "UNKNOWN"
    assert (await acceptance.claim(request, ("probe", "default"))).HasField("assignment")
