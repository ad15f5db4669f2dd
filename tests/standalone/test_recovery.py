"""A machine that loses its power: everything is gone at once, and so may the broker's store be."""

import shutil
import threading
from pathlib import Path

import psutil

from finetuneflow import Client
from tests.e2e.conftest import System, rows

__all__ = ["rows"]

HYPERPARAMETERS = {
    "max_steps": 60,
    "logging_steps": 1,
    "eval_steps": 10,
    "save_steps": 10,
    "max_length": 64,
    "learning_rate": 1e-3,
}


def test_a_job_goes_on_after_everything_was_killed_and_the_broker_wiped(tmp_path: Path, rows: Path) -> None:
    """A night of training must not depend on what the broker remembers."""
    system = System(tmp_path)
    system.start()
    sequences: list[int] = []
    restored: list[int] = []
    checkpoint = threading.Event()

    def follow(job_id: str) -> None:
        with Client(system.address) as client:
            for event in client.jobs.watch(job_id):
                sequences.append(event.sequence)
                if event.kind == "checkpoint":
                    checkpoint.set()
                if event.kind == "restored":
                    restored.append(event.restored.checkpoint_step)

    with Client(system.address) as client:
        job = client.jobs.create(base_model="tiny", training_data=rows, hyperparameters=HYPERPARAMETERS)
        follower = threading.Thread(target=follow, args=(job.id,))
        follower.start()
        assert checkpoint.wait(90), system.logs()
        family = system.kill()
        assert not psutil.wait_procs(family, timeout=10)[1], "an orphan"
        shutil.rmtree(tmp_path / "nats" / "store")
        system.start()
        job = client.jobs.wait(job.id, timeout=120)
        follower.join(30)
        assert not follower.is_alive()
        job = client.jobs.get(job.id)
    system.stop()
    assert job.state == "SUCCEEDED"
    assert restored, "it went on from a checkpoint"
    assert sequences == list(range(1, job.last_sequence + 1))
    lost = [attempt for attempt in job.attempts if attempt.counted]
    assert [(attempt.stage, attempt.reason) for attempt in lost] == [("TRAINING", "KILLED")]
