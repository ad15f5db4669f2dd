"""Disks and stores that take no more: what goes on, what ends, and what is said about it."""

import asyncio
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from chassis.bus.event_bus import Bus
from tests.chassis.conftest import StartWorker
from tests.chassis.peers import ITEM, Gateway, arm, idle, kind, record

IMPATIENT = {"checkpoint_retry_seconds": (0.01,), "upload_retry_seconds": (0.01, 0.01)}


@pytest.fixture
def full_store(tmp_path: Path) -> Iterator[Path]:
    """The store takes nothing while this is a file."""
    store = tmp_path / "home/artifacts"
    store.mkdir(parents=True)
    blocked = store / "default"
    blocked.write_bytes(b"where a folder should be")
    return blocked


def make_room(blocked: Path) -> None:
    blocked.unlink()


def taken(armed: Path, name: str) -> bool:
    return any(armed.glob(f"{name}.*.taken"))


def steps(gateway: Gateway) -> list[int]:
    return [event.checkpoint.step for event in gateway.events if kind(event) == "checkpoint"]


async def test_a_checkpoint_that_cannot_be_stored_ends_no_training_and_comes_with_the_next(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, full_store: Path, tmp_path: Path
) -> None:
    """Days of training would end because a disk was full for a minute. The best one is not given up for a newer one."""
    gateway.do = "save"
    worker = await start_worker(**IMPATIENT)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    workdir = record(tmp_path).workdir
    for step in (1, 2):
        (workdir / f"save-{step}").touch()
        await gateway.until(lambda: sum(kind(event) == "warning" for event in gateway.events) == step)  # noqa: B023
    warning = next(event.warning for event in gateway.events if kind(event) == "warning")
    assert warning.reason == "CHECKPOINT_NOT_STORED"
    assert "step 1" in warning.message
    assert warning.advice
    assert steps(gateway) == []
    make_room(full_store)
    (workdir / "end").touch()
    (workdir / "save-3").touch()
    ending = await gateway.ending()
    # 1 is the best, 2 was superseded by 3.
    assert steps(gateway) == [1, 3]
    assert ending.stage_completed.training.best_checkpoint_path.endswith("checkpoints/step-1")
    await idle(worker)


async def test_a_result_without_its_best_checkpoint_is_a_failure_that_says_what_to_do(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, full_store: Path, tmp_path: Path
) -> None:
    """The evaluation would ask for what is nowhere."""
    gateway.do = "save"
    await start_worker(**IMPATIENT)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    workdir = record(tmp_path).workdir
    (workdir / "end").touch()
    (workdir / "save-1").touch()
    failure = (await gateway.ending()).stage_failed
    assert failure.reason == "UPLOAD_FAILED"
    assert "artifact store" in failure.advice


async def test_a_full_store_is_called_one(bus: Bus, gateway: Gateway, start_worker: StartWorker, armed: Path) -> None:
    """The operator is to make room, not to look for a defect."""
    gateway.do = "artifact"
    arm(armed, "upload.store", "full")
    await start_worker(upload_retry_seconds=(), checkpoint_retry_seconds=())
    await bus.publish_work("trainer", "default", ITEM)
    failure = (await gateway.ending()).stage_failed
    assert failure.reason == "STORE_FULL"
    assert "make room" in failure.advice


@pytest.mark.parametrize("do", ["no_room", "no_room_in_child"])
async def test_a_full_disk_of_the_worker_is_named(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, do: str
) -> None:
    """It is no defect: somebody has to make room."""
    gateway.do = do
    await start_worker(**IMPATIENT)
    await bus.publish_work("trainer", "default", ITEM)
    failure = (await gateway.ending()).stage_failed
    assert failure.reason == "DISK_FULL"
    assert "make room" in failure.advice


async def test_events_wait_for_room_on_the_disk(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, armed: Path
) -> None:
    """No event is lost or numbered twice, and the training goes on when there is room again."""
    arm(armed, "spool.append", "full")
    await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    assert (await gateway.ending()).HasField("stage_completed")
    assert [event.ordinal for event in gateway.events] == list(range(len(gateway.events)))
    assert [event.log.step for event in gateway.events if kind(event) == "log"] == list(range(1, 101))
    assert taken(armed, "spool.append")


async def test_a_full_disk_ends_the_heartbeat_of_what_cannot_be_kept(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Then the lease gives the job to a machine that has room; with a heartbeat it would wait here for ever."""
    gateway.do = "talk"
    worker = await start_worker(disk_patience_seconds=0.5)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        await idle(worker)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not any(kind(event).startswith("stage_") for event in gateway.events)
    assert [event.ordinal for event in gateway.events] == list(range(len(gateway.events)))


async def test_a_worker_without_room_for_a_claim_leaves_the_work_to_others(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, armed: Path
) -> None:
    """Claimed and not kept, every job that comes by would lose an attempt here."""
    arm(armed, "claim.spooled", "full")
    await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    async with asyncio.timeout(20):
        while not taken(armed, "claim.spooled"):  # noqa: ASYNC110 - a file says so
            await asyncio.sleep(0.01)
    assert gateway.claim_id == ""
    assert (await gateway.ending()).HasField("stage_completed")
