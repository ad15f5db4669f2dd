"""Jobs, their events and their watches survive the death of processes."""

import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from finetuneflow import Client
from finetuneflow.resources.job import Job
from tests.e2e.conftest import System

SHORT = {"max_steps": 120, "logging_steps": 1, "eval_steps": 20, "max_length": 64}
ENDLESS = {**SHORT, "max_steps": 1_000_000, "eval_steps": 1_000_000, "save_steps": 1_000_000}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    system = System(tmp_path_factory.mktemp("home"), FTF_TRAINER_STALL_SECONDS="5", FTF_GATEWAY_LEASE_SECONDS="5")
    system.start()
    yield system
    system.stop()


class Follower:
    """Watches a job in a thread, across whatever happens to its connection."""

    def __init__(self, system: System, job_id: str) -> None:
        self.sequences: list[int] = []
        self.steps = threading.Semaphore(0)
        self._job_id = job_id
        self._client = Client(system.address)
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        for event in self._client.jobs.watch(self._job_id):
            self.sequences.append(event.sequence)
            if event.kind == "log":
                self.steps.release()

    def wait_for_log_events(self, logs: int = 10) -> None:
        """Waits until that many log events were received."""
        for _ in range(logs):
            assert self.steps.acquire(timeout=240)

    def wait_for_end(self) -> Job:
        self._thread.join(280)
        assert not self._thread.is_alive()
        job = self._client.jobs.get(self._job_id)
        assert self.sequences == list(range(1, job.last_sequence + 1)), "an event was lost, repeated or reordered"
        self._client.close()
        return job


def start(system: System, rows: Path, hyperparameters: dict[str, object], **more: object) -> Follower:
    with Client(system.address) as client:
        job = client.jobs.create(
            base_model="tiny",
            training_data=str(rows),
            hyperparameters=hyperparameters,
            **more,  # type: ignore[arg-type]
        )
    return Follower(system, job.id)


def the_process(system: System, module: str) -> psutil.Process:
    (process,) = system.processes(module)
    return process


@pytest.mark.long
def test_job_continues_after_gateway_is_killed(system: System, rows: Path) -> None:
    follower = start(system, rows, SHORT)
    follower.wait_for_log_events()
    the_process(system, "gateway").kill()
    job = follower.wait_for_end()
    assert (job.state, job.failed_attempts) == ("SUCCEEDED", 0)


@pytest.mark.long
def test_job_continues_after_training_child_is_killed(system: System, rows: Path) -> None:
    follower = start(system, rows, SHORT)
    follower.wait_for_log_events(30)
    the_process(system, "services.trainer.worker").kill()
    job = follower.wait_for_end()
    assert (job.state, job.failed_attempts) == ("SUCCEEDED", 1)


@pytest.mark.long
def test_job_continues_after_trainer_is_killed_and_no_orphan_remains(system: System, rows: Path) -> None:
    follower = start(system, rows, SHORT)
    follower.wait_for_log_events(30)
    child = the_process(system, "services.trainer.worker")
    the_process(system, "services.trainer").kill()
    child.wait(10)
    job = follower.wait_for_end()
    assert (job.state, job.failed_attempts) == ("SUCCEEDED", 1)


def test_running_training_can_be_cancelled(system: System, rows: Path) -> None:
    follower = start(system, rows, ENDLESS)
    follower.wait_for_log_events()
    child = the_process(system, "services.trainer.worker")
    with Client(system.address) as client:
        client.jobs.cancel(follower._job_id)
        client.jobs.cancel(follower._job_id)
    job = follower.wait_for_end()
    assert job.state == "CANCELLED"
    child.wait(10)


@pytest.mark.long
def test_hanging_child_fails_as_stalled(system: System, rows: Path) -> None:
    follower = start(system, rows, ENDLESS, max_attempts=1)
    follower.wait_for_log_events()
    child = the_process(system, "services.trainer.worker")
    child.suspend()
    job = follower.wait_for_end()
    assert (job.state, job.reason, job.fault) == ("FAILED", "STALLED", "SYSTEM_ERROR")
    assert job.advice
    child.wait(10)


@pytest.mark.long
def test_pause_releases_the_device_and_resume_continues(system: System, rows: Path) -> None:
    follower = start(system, rows, {**SHORT, "max_steps": 400})
    follower.wait_for_log_events(30)
    child = the_process(system, "services.trainer.worker")
    with Client(system.address) as client:
        client.jobs.pause(follower._job_id)
        child.wait(30)
        client.jobs.resume(follower._job_id)
    job = follower.wait_for_end()
    assert (job.state, job.failed_attempts) == ("SUCCEEDED", 0)
