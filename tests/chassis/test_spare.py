import asyncio
import os
import signal
from pathlib import Path

import psutil

from chassis.attempt.stage_worker import StageWorker
from chassis.bus.event_bus import Bus
from chassis.child.spare import Spare, SpareCommand
from tests.chassis.conftest import StartSupervisor, StartWorker
from tests.chassis.peers import CHILD, ITEM, Gateway, StageWithSpare, claim_record, kind, wait_for_exit, wait_until_idle
from tests.servers.nats import NatsServer


class BrokenStage(StageWithSpare):
    """Its spare fails while it imports."""

    def spare(self) -> SpareCommand:
        return SpareCommand(super().spare().argv, {"OMP_NUM_THREADS": "broken"})


def spare_of(worker: StageWorker) -> Spare:
    return worker._context.spare


async def wait_for_spare(spare: Spare, other_than: int = 0) -> int:
    """The pid of a spare, once there is one."""
    async with asyncio.timeout(20):
        while spare.pid in (0, other_than):  # noqa: ASYNC110 - it sends no notification
            await asyncio.sleep(0.02)
    return spare.pid


async def test_spare_runs_exactly_one_attempt(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Imports take seconds and are done before the job arrives; the job's devices still apply."""
    gateway.do = "wait"
    worker = await start_worker(StageWithSpare(), warm_spare=True)
    first = await wait_for_spare(spare_of(worker))
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    assert claim_record(tmp_path).child_pid == first
    (phase,) = [event.phase for event in gateway.events if event.phase.detail]
    assert phase.detail == "7"
    # Beside a child that leaves the processors alone the next one waits already.
    assert await wait_for_spare(spare_of(worker), first) != first
    gateway.directive = 2
    assert (await gateway.wait_for_ending()).stage_released.reason == "PAUSED"


async def test_no_spare_is_started_beside_a_training_on_cpu(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """It would use cores and memory of the training."""
    gateway.do = "wait on_cpu cold"
    worker = await start_worker(StageWithSpare(), warm_spare=True)
    unused = await wait_for_spare(spare_of(worker))
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    assert claim_record(tmp_path).child_pid != unused
    assert spare_of(worker).pid == 0
    await wait_for_exit(unused)
    gateway.directive = 2
    await gateway.wait_for_ending()
    await wait_for_spare(spare_of(worker))


async def test_killed_spare_fails_no_attempt_and_is_replaced(
    bus: Bus, gateway: Gateway, start_worker: StartWorker
) -> None:
    worker = await start_worker(StageWithSpare(), warm_spare=True)
    first = await wait_for_spare(spare_of(worker))
    os.kill(first, signal.SIGKILL)
    await bus.publish_work("trainer", "default", ITEM)
    assert (await gateway.wait_for_ending()).HasField("stage_completed")
    assert await wait_for_spare(spare_of(worker), first) != first


async def test_spare_that_fails_to_start_fails_no_attempt(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Otherwise a job would fail without a cause: only the output of an attempt's own child is reported."""
    worker = await start_worker(BrokenStage(), warm_spare=True)
    await wait_for_spare(spare_of(worker))
    await bus.publish_work("trainer", "default", ITEM)
    assert (await gateway.wait_for_ending()).HasField("stage_completed")


async def number_of_threads(pid: int) -> str:
    """Returns OMP_NUM_THREADS of a process, which has no environment of its own before its program has started."""
    async with asyncio.timeout(20):
        while "OMP_NUM_THREADS" not in (found := psutil.Process(pid).environ()):  # noqa: ASYNC110 - no notification
            await asyncio.sleep(0.01)
    return found["OMP_NUM_THREADS"]


async def test_spare_with_different_environment_is_replaced(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Imports read variables such as the number of threads: with other values the training differs."""

    class OtherThreads(StageWithSpare):
        def spare(self) -> SpareCommand:
            return SpareCommand(super().spare().argv, {"OMP_NUM_THREADS": "3"})

    gateway.do = "wait"
    worker = await start_worker(OtherThreads(), warm_spare=True)
    wrong = await wait_for_spare(spare_of(worker))
    assert await number_of_threads(wrong) == "3"
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    right = await wait_for_spare(spare_of(worker), wrong)
    for pid in (claim_record(tmp_path).child_pid, right):
        assert await number_of_threads(pid) == "1"
    await wait_for_exit(wrong)
    assert kind(gateway.events[-1]) != "stage_failed"


async def test_a_spare_ends_with_the_worker(start_worker: StartWorker) -> None:
    worker = await start_worker(StageWithSpare(), warm_spare=True)
    pid = await wait_for_spare(spare_of(worker))
    await worker.drain()
    await wait_until_idle(worker)
    await wait_for_exit(pid)


async def test_spare_ends_with_a_killed_worker(start_supervisor: StartSupervisor) -> None:
    """Otherwise each crashed worker would leave half a gigabyte in use."""
    supervisor = await start_supervisor()
    spares: list[psutil.Process] = []
    async with asyncio.timeout(20):
        while not spares:
            spares = [each for each in psutil.Process(supervisor.pid).children() if str(CHILD) in each.cmdline()]
            await asyncio.sleep(0.02)
    supervisor.kill()
    await supervisor.wait()
    await wait_for_exit(*(each.pid for each in spares))


async def test_spares_can_be_switched_off(start_worker: StartWorker, nats_server: NatsServer) -> None:
    worker = await start_worker(StageWithSpare(), warm_spare=False)
    assert spare_of(worker)._command is None
    assert spare_of(worker).pid == 0
