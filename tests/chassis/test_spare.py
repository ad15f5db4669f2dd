import asyncio
import os
import signal
from pathlib import Path

import psutil

from chassis.attempt.stage_worker import StageWorker
from chassis.bus.event_bus import Bus
from chassis.child.spare import Spare, SpareCommand
from tests.chassis.conftest import StartSupervisor, StartWorker
from tests.chassis.peers import CHILD, ITEM, Gateway, SparedStage, gone, idle, kind, record
from tests.servers.nats import NatsServer


class BrokenStage(SparedStage):
    """Its spare fails while it imports."""

    def spare(self) -> SpareCommand:
        return SpareCommand(super().spare().argv, {"OMP_NUM_THREADS": "broken"})


def spare_of(worker: StageWorker) -> Spare:
    return worker._context.spare


async def waiting(spare: Spare, other_than: int = 0) -> int:
    """The pid of a spare, once there is one."""
    async with asyncio.timeout(20):
        while spare.pid in (0, other_than):  # noqa: ASYNC110 - it says so to nobody
            await asyncio.sleep(0.02)
    return spare.pid


async def test_an_attempt_is_run_by_the_spare_and_only_one(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Seconds of imports are paid before the job comes; its devices are those of the job all the same."""
    gateway.do = "wait"
    worker = await start_worker(SparedStage(), warm_spare=True)
    first = await waiting(spare_of(worker))
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    assert record(tmp_path).child_pid == first
    (phase,) = [event.phase for event in gateway.events if event.phase.detail]
    assert phase.detail == "7"
    # Beside a child that leaves the processors alone the next one waits already.
    assert await waiting(spare_of(worker), first) != first
    gateway.directive = 2
    assert (await gateway.ending()).stage_released.reason == "PAUSED"


async def test_there_is_none_beside_a_child_that_computes_on_the_processors(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """It would take cores and memory from the training."""
    gateway.do = "wait on_cpu cold"
    worker = await start_worker(SparedStage(), warm_spare=True)
    unused = await waiting(spare_of(worker))
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    assert record(tmp_path).child_pid != unused
    assert spare_of(worker).pid == 0
    await gone(unused)
    gateway.directive = 2
    await gateway.ending()
    await waiting(spare_of(worker))


async def test_a_spare_that_was_killed_fails_no_attempt_and_is_replaced(
    bus: Bus, gateway: Gateway, start_worker: StartWorker
) -> None:
    worker = await start_worker(SparedStage(), warm_spare=True)
    first = await waiting(spare_of(worker))
    os.kill(first, signal.SIGKILL)
    await bus.publish_work("trainer", "default", ITEM)
    assert (await gateway.ending()).HasField("stage_completed")
    assert await waiting(spare_of(worker), first) != first


async def test_a_spare_that_cannot_start_fails_no_attempt(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Otherwise a job would fail without a cause: only the output of an attempt's own child is reported."""
    worker = await start_worker(BrokenStage(), warm_spare=True)
    await waiting(spare_of(worker))
    await bus.publish_work("trainer", "default", ITEM)
    assert (await gateway.ending()).HasField("stage_completed")


async def test_a_spare_with_another_environment_is_not_used_and_the_next_has_the_right_one(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Variables such as the number of threads are read by imports: with the wrong ones a training is another one."""

    class OtherThreads(SparedStage):
        def spare(self) -> SpareCommand:
            return SpareCommand(super().spare().argv, {"OMP_NUM_THREADS": "3"})

    gateway.do = "wait"
    worker = await start_worker(OtherThreads(), warm_spare=True)
    wrong = await waiting(spare_of(worker))
    assert psutil.Process(wrong).environ()["OMP_NUM_THREADS"] == "3"
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    right = await waiting(spare_of(worker), wrong)
    for pid in (record(tmp_path).child_pid, right):
        assert psutil.Process(pid).environ()["OMP_NUM_THREADS"] == "1"
    await gone(wrong)
    assert kind(gateway.events[-1]) != "stage_failed"


async def test_a_spare_ends_with_the_worker(start_worker: StartWorker) -> None:
    worker = await start_worker(SparedStage(), warm_spare=True)
    pid = await waiting(spare_of(worker))
    await worker.drain()
    await idle(worker)
    await gone(pid)


async def test_a_spare_ends_with_a_worker_that_is_killed(start_supervisor: StartSupervisor) -> None:
    """Half a gigabyte for ever, for every worker that ever crashed."""
    supervisor = await start_supervisor()
    spares: list[psutil.Process] = []
    async with asyncio.timeout(20):
        while not spares:
            spares = [each for each in psutil.Process(supervisor.pid).children() if str(CHILD) in each.cmdline()]
            await asyncio.sleep(0.02)
    supervisor.kill()
    await supervisor.wait()
    await gone(*(each.pid for each in spares))


async def test_there_is_none_where_the_setting_says_so(start_worker: StartWorker, nats_server: NatsServer) -> None:
    worker = await start_worker(SparedStage(), warm_spare=False)
    assert spare_of(worker)._command is None
    assert spare_of(worker).pid == 0
