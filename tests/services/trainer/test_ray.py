"""Trainings on a real Ray cluster of two nodes, as a trainer with FTF_TRAINER_ENGINE=ray starts them."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from chassis.child.child_process import WORKDIR, Child, ChildCommand
from chassis.child.spare import Spare
from chassis.security import confinement_filter
from finetuneflow.v1.event_pb2 import Event
from finetuneflow.v1.fine_tuning_job_pb2 import FAULT_SYSTEM_ERROR
from services.trainer.ray_cluster import RayCluster
from services.trainer.settings import TrainerSettings
from services.trainer.worker.child_input import TrainingInput
from services.trainer.worker.launch import RANK
from tests.servers import ray
from tests.services.trainer.test_ranks import COMMON, TWO, Run, figures, run_ranks

MakeInput = Callable[..., Any]
Processes = Callable[[], dict[int, psutil.Process]]
AtEvent = Callable[[Event, Child, Processes], None]

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not ray.INSTALLED, reason="`make test-long` installs Ray"),
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[ray.RayCluster]:
    with ray.ray_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def settings(nodes: ray.RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerSettings]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in nodes.client.items():
            patch.setenv(name, value)
        # Whether it is installed is asked here; the processes that are started import it.
        patch.syspath_prepend(nodes.client["PYTHONPATH"])
        home = tmp_path_factory.mktemp("home")
        yield TrainerSettings(engine="ray", ray_address=nodes.address, home=home, node_id="trainer-1")


@pytest.fixture(scope="module")
def cluster(settings: TrainerSettings) -> RayCluster:
    cluster = RayCluster(settings)
    assert cluster.connect() == ""
    return cluster


def run_on(cluster: RayCluster, child_input: TrainingInput, tmp_path: Path, at_event: AtEvent | None = None) -> Run:
    """Runs an input as the trainer does."""
    folder = tmp_path / f"{child_input.out_dir.name}.attempt"

    def processes() -> dict[int, psutil.Process]:
        """Returns the children that compute, by their numbers."""
        found = {}
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            if environment.get(WORKDIR) == str(folder) and RANK in environment:
                found[int(environment[RANK])] = process
        return found

    async def run() -> Run:
        folder.mkdir()
        file = folder / "input.json"
        file.write_text(child_input.model_dump_json())
        reads = [child_input.model.path, child_input.data_dir, child_input.out_dir]
        reads += [child_input.resume.path] if child_input.resume else []
        local = ChildCommand(
            [sys.executable, "-m", "services.trainer.worker", str(file)], child_input.out_dir, reads=reads
        )
        child = await Spare(None, tmp_path / "spare").start(cluster.command(local, child_input), folder)
        events: list[Event] = []
        try:
            async with asyncio.timeout(280):
                async for frame in child.frames():
                    if frame:
                        events.append(event := Event.FromString(frame))
                        if at_event:
                            at_event(event, child, processes)
                status = await child.wait()
        finally:
            child.close()
        return Run(events, status, child.last_lines(), child_input.out_dir)

    return asyncio.run(run())


def test_two_nodes_train_as_two_processes_of_one_machine_do(
    cluster: RayCluster, make_input: MakeInput, tmp_path: Path
) -> None:
    """More machines must change how long a training takes, and nothing that it learns or reports."""
    expected = run_ranks(make_input("local", **COMMON, **TWO), tmp_path)
    seen: dict[int, psutil.Process] = {}
    filtered: list[bool] = []
    secret: list[bool] = []

    def look(event: Event, child: Child, processes: Processes) -> None:
        if event.log.step == 1:
            seen.update(processes())
            statuses = [Path(f"/proc/{process.pid}/status").read_text() for process in seen.values()]
            filtered.extend("Seccomp:\t2" in status for status in statuses)
            secret.extend("RAY_AUTH_TOKEN" in process.environ() for process in seen.values())

    spread = run_on(cluster, make_input("spread", **COMMON, **TWO), tmp_path, look)

    assert spread.status == 0, spread.lines
    assert figures(spread.of("log"), spread.of("eval")) == figures(expected.of("log"), expected.of("eval"))
    assert spread.of("stage_completed")[0].training.best_step == expected.of("stage_completed")[0].training.best_step
    assert_same_files(spread.checkpoints[8], expected.checkpoints[8])
    assert sorted(seen) == [0, 1]
    assert filtered == [confinement_filter.available()] * 2, "a child on a node is confined as one of the trainer is"
    assert secret == [False, False], "with Ray's token, a child could start work in the cluster"
    assert not any(process.is_running() for process in seen.values())


def test_a_killed_process_ends_the_training_and_the_next_attempt_goes_on_exactly(
    cluster: RayCluster, make_input: MakeInput, tmp_path: Path
) -> None:
    """A process that waited for a dead one would hold its device for ever; one that went on alone would train another
    model."""
    case = COMMON | TWO | {"lora": {"lora_dropout": 0.1}, "save_steps": 2}
    straight = run_ranks(make_input("straight", **case), tmp_path)

    def kill(event: Event, child: Child, processes: Processes) -> None:
        if event.log.step == 5:
            processes()[1].kill()

    killed = run_on(cluster, make_input("killed", **case), tmp_path, kill)
    newest = max(killed.checkpoints)
    resumed = run_on(cluster, make_input("resumed", resume_from=killed.checkpoints[newest], **case), tmp_path)

    (failure,) = killed.of("stage_failed")
    assert (failure.fault, failure.reason) == (FAULT_SYSTEM_ERROR, "KILLED")
    assert failure.message.startswith("Process 2 of 2 on node ")
    assert failure.message.endswith(" was ended by SIGKILL.")
    before = {log.step: log.loss for log in straight.of("log")}
    assert {log.step for log in resumed.of("log")} == set(range(newest + 1, 9))
    for log in [*killed.of("log"), *resumed.of("log")]:
        assert log.loss == before[log.step], log.step
    assert_same_files(resumed.checkpoints[8], straight.checkpoints[8])


def test_a_pause_is_agreed_on(cluster: RayCluster, make_input: MakeInput, tmp_path: Path) -> None:
    """If only one process stopped, the others would wait for it until they are killed, and the steps would be lost."""
    case = COMMON | TWO | {"total_steps": 5000, "eval_steps": 5000, "save_steps": 5000}

    def pause(event: Event, child: Child, processes: Processes) -> None:
        if event.log.step == 3:
            child.control("pause")

    paused = run_on(cluster, make_input("paused", **case), tmp_path, pause)

    assert paused.status == 0, paused.lines
    assert [each.reason for each in paused.of("stage_released")] == ["PAUSED"]
    assert max(paused.checkpoints) == max(log.step for log in paused.of("log")) < 5000


def test_nothing_is_left_of_a_driver_that_is_killed(cluster: RayCluster, make_input: MakeInput, tmp_path: Path) -> None:
    """A trainer that is stopped would leave processes behind that hold GPUs of the cluster."""
    seen: list[psutil.Process] = []

    def kill(event: Event, child: Child, processes: Processes) -> None:
        if event.log.step == 2:
            seen.extend(processes().values())
            child.kill()

    run_on(cluster, make_input("stopped", **COMMON | TWO | {"total_steps": 5000}), tmp_path, kill)

    assert len(seen) == 2
    _, alive = psutil.wait_procs(seen, timeout=60)
    assert not alive


def test_a_cluster_without_the_models_is_refused(settings: TrainerSettings) -> None:
    """Every training with that model would fail, in the middle of the night."""
    missing = settings.model_copy(update={"models": {"ours": Path("/nowhere/ours")}})
    assert "does not have the models ours of FTF_MODELS" in RayCluster(missing).connect()


def test_an_address_without_a_cluster_is_refused(settings: TrainerSettings) -> None:
    """Ray would start a cluster of its own, of one machine."""
    nobody = settings.model_copy(update={"ray_address": "127.0.0.1:9"})
    assert "correct FTF_TRAINER_RAY_ADDRESS" in RayCluster(nobody).connect()


def test_a_cluster_is_announced_with_what_any_process_gets(cluster: RayCluster) -> None:
    """A job would be planned for the trainer's machine, which trains nothing."""
    hardware = cluster.hardware()
    assert (hardware.node_id, hardware.cpu_cores, hardware.cuda_available) == ("trainer-1", 1, False)
    assert hardware.memory_total_bytes > 0


def test_a_lost_node_is_named(
    cluster: RayCluster, nodes: ray.RayCluster, make_input: MakeInput, tmp_path: Path
) -> None:
    """The operator has to know which machine to look at. The job goes on without it."""
    elsewhere: list[int] = []

    def lose(event: Event, child: Child, processes: Processes) -> None:
        if event.log.step == 3:
            pids = {process.pid for process in nodes.other.processes()}
            elsewhere.extend(number for number, process in processes().items() if process.pid in pids)
            nodes.other.kill()

    lost = run_on(cluster, make_input("lost", **COMMON | TWO | {"total_steps": 5000}), tmp_path, lose)

    (number,) = elsewhere
    (failure,) = lost.of("stage_failed")
    assert (failure.fault, failure.reason) == (FAULT_SYSTEM_ERROR, "MACHINE_FAILED"), failure
    assert failure.message.startswith("The Ray cluster lost the node ")
    assert failure.message.endswith(f" and with it process {number + 1} of 2.")


def assert_same_files(checkpoint: Path, other: Path) -> None:
    for file in ("adapter_model.safetensors", "optimizer.pt", "rng_state_0.pth", "rng_state_1.pth"):
        assert (checkpoint / file).read_bytes() == (other / file).read_bytes(), file
