"""Behaviour of a worker when its disk or the artifact store is full."""

import asyncio
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from chassis.bus.event_bus import Bus
from tests.chassis.conftest import StartWorker
from tests.chassis.peers import ITEM, Gateway, arm, claim_record, kind, wait_until_idle

IMPATIENT = {"checkpoint_retry_seconds": (0.01,), "upload_retry_seconds": (0.01, 0.01)}


@pytest.fixture
def blocked_store(tmp_path: Path) -> Iterator[Path]:
    """The store accepts no writes while this is a file."""
    store = tmp_path / "home/artifacts"
    store.mkdir(parents=True)
    blocked = store / "default"
    blocked.write_bytes(b"where a folder should be")
    return blocked


def unblock_store(blocked: Path) -> None:
    blocked.unlink()


def failpoint_reached(armed: Path, name: str) -> bool:
    return any(armed.glob(f"{name}.*.taken"))


def steps(gateway: Gateway) -> list[int]:
    return [event.checkpoint.step for event in gateway.events if kind(event) == "checkpoint"]


async def test_training_continues_when_a_checkpoint_cannot_be_stored(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, blocked_store: Path, tmp_path: Path
) -> None:
    """A disk that is full for a minute must not end days of training. The best checkpoint is retried, also after a
    newer one."""
    gateway.do = "save"
    worker = await start_worker(**IMPATIENT)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    workdir = claim_record(tmp_path).workdir
    for step in (1, 2):
        (workdir / f"save-{step}").touch()
        await gateway.wait_until(lambda: sum(kind(event) == "warning" for event in gateway.events) == step)  # noqa: B023
    warning = next(event.warning for event in gateway.events if kind(event) == "warning")
    assert warning.reason == "CHECKPOINT_NOT_STORED"
    assert "step 1" in warning.message
    assert warning.advice
    assert steps(gateway) == []
    unblock_store(blocked_store)
    (workdir / "end").touch()
    (workdir / "save-3").touch()
    ending = await gateway.wait_for_ending()
    # 1 is the best, 2 was superseded by 3.
    assert steps(gateway) == [1, 3]
    assert ending.stage_completed.training.best_checkpoint_path.endswith("checkpoints/step-1")
    await wait_until_idle(worker)


async def test_stage_fails_with_advice_if_best_checkpoint_cannot_be_stored(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, blocked_store: Path, tmp_path: Path
) -> None:
    """The evaluation would request a checkpoint that does not exist."""
    gateway.do = "save"
    await start_worker(**IMPATIENT)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    workdir = claim_record(tmp_path).workdir
    (workdir / "end").touch()
    (workdir / "save-1").touch()
    failure = (await gateway.wait_for_ending()).stage_failed
    assert failure.reason == "UPLOAD_FAILED"
    assert "artifact store" in failure.advice


async def test_full_store_is_reported_as_full(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, armed: Path
) -> None:
    """The operator is to free space, not to look for a defect."""
    gateway.do = "artifact"
    arm(armed, "upload.store", "full")
    await start_worker(upload_retry_seconds=(), checkpoint_retry_seconds=())
    await bus.publish_work("trainer", "default", ITEM)
    failure = (await gateway.wait_for_ending()).stage_failed
    assert failure.reason == "STORE_FULL"
    assert "make room" in failure.advice


@pytest.mark.parametrize("do", ["no_room", "no_room_in_child"])
async def test_full_worker_disk_is_reported_as_full(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, do: str
) -> None:
    """It is no defect: the operator is to free space."""
    gateway.do = do
    await start_worker(**IMPATIENT)
    await bus.publish_work("trainer", "default", ITEM)
    failure = (await gateway.wait_for_ending()).stage_failed
    assert failure.reason == "DISK_FULL"
    assert "make room" in failure.advice


async def test_events_wait_until_disk_has_space(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, armed: Path
) -> None:
    """No event is lost or numbered twice, and the training continues once there is space."""
    arm(armed, "spool.append", "full")
    await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    assert (await gateway.wait_for_ending()).HasField("stage_completed")
    assert [event.ordinal for event in gateway.events] == list(range(len(gateway.events)))
    assert [event.log.step for event in gateway.events if kind(event) == "log"] == list(range(1, 101))
    assert failpoint_reached(armed, "spool.append")


async def test_heartbeat_ends_while_events_cannot_be_stored(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """The lease then expires and another node gets the job; with heartbeats it would wait here for ever."""
    gateway.do = "talk"
    worker = await start_worker(disk_patience_seconds=0.5)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        await wait_until_idle(worker)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not any(kind(event).startswith("stage_") for event in gateway.events)
    assert [event.ordinal for event in gateway.events] == list(range(len(gateway.events)))


async def test_worker_on_full_disk_claims_no_work(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, armed: Path
) -> None:
    """Each job claimed without a stored record would lose an attempt."""
    arm(armed, "claim.spooled", "full")
    await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    async with asyncio.timeout(20):
        while not failpoint_reached(armed, "claim.spooled"):  # noqa: ASYNC110 - a file is polled
            await asyncio.sleep(0.01)
    assert gateway.claim_id == ""
    assert (await gateway.wait_for_ending()).HasField("stage_completed")
