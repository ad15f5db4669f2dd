"""Pause, cancel, drain and directives, at the moments when they are awkward."""

import asyncio
import signal
from pathlib import Path

import psutil
import pytest

from chassis.bus import subjects
from chassis.bus.event_bus import Bus
from finetuneflow.v1 import work_pb2
from tests.chassis.conftest import StartSupervisor, StartWorker
from tests.chassis.peers import ITEM, ChildStage, Gateway, arm, cleared, gone, idle, kind, record, spools
from tests.servers.nats import NatsServer


@pytest.mark.parametrize("wish", ["drain", "pause", "cancel"])
async def test_a_preparation_is_let_go_at_once_and_its_thread_writes_no_more(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path, wish: str
) -> None:
    """A download of an hour would hold up the drain, and go on writing where another attempt may read."""
    gateway.do = "fetch"
    stage = ChildStage()
    worker = await start_worker(stage)
    await bus.publish_work("trainer", "default", ITEM)
    await stage.fetched.wait()
    if wish == "drain":
        await worker.drain()
    else:
        gateway.directive = work_pb2.DIRECTIVE_PAUSE if wish == "pause" else work_pb2.DIRECTIVE_CANCEL
    reason = {"drain": "DRAINED", "pause": "PAUSED", "cancel": "CANCELLED"}[wish]
    assert (await gateway.ending()).stage_released.reason == reason
    await idle(worker)
    stage.go_on.set()
    async with asyncio.timeout(10):
        while not stage.written:  # noqa: ASYNC110 - a thread says so
            await asyncio.sleep(0.01)
    assert stage.written == ["given up"]
    await cleared(tmp_path)


async def test_a_preparation_that_gets_nothing_is_stalled_and_says_where(
    bus: Bus, gateway: Gateway, start_worker: StartWorker
) -> None:
    """A hub that hangs would hold a slot for ever."""
    gateway.do = "fetch"
    stage = ChildStage()
    await start_worker(stage, preparation_stall_seconds=0.5)
    await bus.publish_work("trainer", "default", ITEM)
    failure = (await gateway.ending()).stage_failed
    assert failure.reason == "STALLED"
    assert "fetching_model" in failure.message
    stage.go_on.set()


async def test_watchers_hear_what_is_being_fetched_and_how_far_it_is(
    bus: Bus, gateway: Gateway, start_worker: StartWorker
) -> None:
    """Gigabytes take minutes in which nothing else happens."""
    gateway.do = "fetch"
    stage = ChildStage()
    await start_worker(stage, preparation_progress_seconds=0.0)
    await bus.publish_work("trainer", "default", ITEM)
    stage.go_on.set()
    assert (await gateway.ending()).HasField("stage_completed")
    phases = [event.phase for event in gateway.events if event.phase.name == "fetching_model"]
    assert [(phase.detail, phase.HasField("fraction"), phase.fraction) for phase in phases] == [
        ("org/model", False, 0.0),
        ("org/model", True, 0.5),
    ]


async def test_a_change_of_the_jobs_state_reaches_its_worker_before_the_next_heartbeat(
    bus: Bus, gateway: Gateway, start_worker: StartWorker
) -> None:
    """Otherwise a user who cancels a job would wait a heartbeat longer for the GPU to become free."""
    gateway.do = "wait"
    await start_worker(heartbeat_seconds=3600.0)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    reports = gateway.reports
    gateway.directive = work_pb2.DIRECTIVE_CANCEL
    await bus.publish(subjects.event("ftjob_another", "state_changed"), b"")
    await bus.publish(subjects.event("ftjob_a", "state_changed"), b"")
    assert (await gateway.ending()).stage_released.reason == "CANCELLED"
    assert gateway.reports > reports


async def test_cancel_leaves_no_process_of_the_child(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Data loaders of a cancelled training would go on eating memory."""
    gateway.do = "grandchildren"
    worker = await start_worker(child_linger_seconds=0.2)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    child = psutil.Process(record(tmp_path).child_pid)
    family = [child, *child.children(recursive=True)]
    assert len(family) == 3
    gateway.directive = work_pb2.DIRECTIVE_CANCEL
    assert (await gateway.ending()).stage_released.reason == "CANCELLED"
    await gone(*(each.pid for each in family))
    await idle(worker)


async def test_a_drain_does_not_wait_for_gateways_and_the_next_process_reports_it(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """An update of everything at once must cost no step, and no attempt."""
    gateway.do = "wait"
    worker = await start_worker(drain_seconds=600, last_report_seconds=0.2)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    pid = record(tmp_path).child_pid
    await gateway.close()
    await worker.stop()
    await gone(pid)
    assert len([file for file in spools(tmp_path) if file.suffix == ".json"]) == 1
    await gateway.open()
    successor = await start_worker(node_id="trainer-2")
    assert (await gateway.ending()).stage_released.reason == "DRAINED"
    assert any(kind(event) == "checkpoint" for event in gateway.events)
    await idle(successor)


async def test_a_drain_while_the_broker_is_down_loses_nothing(
    bus: Bus,
    gateway: Gateway,
    start_worker: StartWorker,
    nats_server: NatsServer,
) -> None:
    gateway.do = "wait"
    worker = await start_worker(drain_seconds=600, last_report_seconds=0.2)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    nats_server.stop()
    await worker.stop()
    nats_server.start()
    await start_worker(node_id="trainer-2")
    assert (await gateway.ending()).stage_released.reason == "DRAINED"
    assert any(kind(event) == "checkpoint" for event in gateway.events)


async def test_a_drain_gives_up_a_checkpoint_that_no_store_takes(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """The operator's machine goes away in a minute; the job goes on from the checkpoint before."""
    gateway.do = "wait"
    worker = await start_worker(drain_seconds=0.5)
    (tmp_path / "home/artifacts").mkdir(parents=True, exist_ok=True)
    (tmp_path / "home/artifacts/default").write_bytes(b"where a folder should be")
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    await worker.drain()
    assert gateway.events[-1].stage_released.reason == "DRAINED"
    assert not any(kind(event) == "checkpoint" for event in gateway.events)


async def test_asked_twice_a_drain_kills_at_once(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Otherwise a user who presses Ctrl-C twice would still wait for a checkpoint."""
    gateway.do = "stubborn"
    worker = await start_worker(drain_seconds=600)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    pid = record(tmp_path).child_pid
    draining = [asyncio.create_task(worker.drain()) for _ in range(2)]
    await worker.drain_began.wait()
    worker.hurry()
    await asyncio.gather(*draining)
    await gone(pid)
    assert gateway.events[-1].stage_released.reason == "DRAINED"


async def test_a_stopped_supervisor_does_not_take_its_child_for_stalled(
    bus: Bus, gateway: Gateway, start_supervisor: StartSupervisor, tmp_path: Path
) -> None:
    """A laptop that sleeps, or a machine that is moved, would lose its trainings."""
    gateway.do = "wait"
    supervisor = await start_supervisor()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    supervisor.send_signal(signal.SIGSTOP)
    # The limit of this supervisor is shorter: that time passes is what is tried.
    await asyncio.sleep(3.5)
    supervisor.send_signal(signal.SIGCONT)
    reports = gateway.reports
    await gateway.until(lambda: gateway.reports >= reports + 2)
    gateway.directive = work_pb2.DIRECTIVE_PAUSE
    assert (await gateway.ending()).stage_released.reason == "PAUSED"


async def test_a_zombie_stops_leaves_nothing_and_takes_nothing_away(
    bus: Bus, gateway: Gateway, start_supervisor: StartSupervisor, tmp_path: Path
) -> None:
    """Its lease ran out while it was stopped: another worker has the job."""
    gateway.do = "stubborn"
    supervisor = await start_supervisor()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    pid, events = record(tmp_path).child_pid, len(gateway.events)
    stored = tmp_path / "home/artifacts/default/jobs/ftjob_a/training/1/checkpoints/step-1"
    stored.mkdir(parents=True)
    (stored / "adapter_model.safetensors").write_bytes(b"accepted")
    supervisor.send_signal(signal.SIGSTOP)
    gateway.claim_id = "another"
    supervisor.send_signal(signal.SIGCONT)
    await gone(pid)
    async with asyncio.timeout(20):
        while spools(tmp_path):  # noqa: ASYNC110 - another process deletes it
            await asyncio.sleep(0.02)
    assert len(gateway.events) == events
    assert (stored / "adapter_model.safetensors").read_bytes() == b"accepted"


async def test_a_child_that_was_started_and_not_written_down_dies_with_its_supervisor(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, start_supervisor: StartSupervisor, tmp_path: Path
) -> None:
    """Nobody would know of it."""
    gateway.do = "stubborn"
    arm(tmp_path / "failpoints", "child.started", "kill")
    supervisor = await start_supervisor()
    await bus.publish_work("trainer", "default", ITEM)
    await supervisor.wait()
    await start_worker(node_id="trainer-2")
    assert (await gateway.ending()).stage_failed.reason == "KILLED"
    left = [each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(each.info["cmdline"] or [])]
    await gone(*(each.pid for each in left if "worker_child" in " ".join(each.info["cmdline"])))


async def test_a_successor_kills_what_left_the_childs_group(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, start_supervisor: StartSupervisor, tmp_path: Path
) -> None:
    """A process that a child has started for itself outlives the child's group, but works in the claim's folder."""
    gateway.do = "grandchildren"
    supervisor = await start_supervisor()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    family = psutil.Process(record(tmp_path).child_pid).children(recursive=True)
    assert len(family) == 2
    supervisor.kill()
    await supervisor.wait()
    await start_worker(node_id="trainer-2")
    await gone(*(each.pid for each in family))
    assert (await gateway.ending()).stage_failed.reason == "KILLED"


async def test_a_claim_whose_supervisor_died_before_the_answer_is_reported_by_the_next(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, start_supervisor: StartSupervisor, tmp_path: Path
) -> None:
    """The job would wait until its lease runs out."""
    arm(tmp_path / "failpoints", "claim.granted", "kill")
    supervisor = await start_supervisor()
    await bus.publish_work("trainer", "default", ITEM)
    await supervisor.wait()
    assert gateway.claim_id
    await start_worker(node_id="trainer-2")
    assert (await gateway.ending()).stage_failed.reason == "KILLED"
