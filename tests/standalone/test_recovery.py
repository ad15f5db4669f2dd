"""Recovery after a power loss: all processes are killed, and the broker's data may be lost."""

import shutil
import threading
from pathlib import Path

import psutil
import pytest

from finetuneflow import Client
from tests.e2e.conftest import System, rows

__all__ = ["rows"]

HYPERPARAMETERS = {
    "max_steps": 100_000,
    "logging_steps": 1,
    "eval_steps": 10,
    "save_steps": 10,
    "max_length": 64,
    "learning_rate": 1e-3,
}


@pytest.mark.long
def test_job_continues_after_all_processes_were_killed_and_broker_lost_its_data(tmp_path: Path, rows: Path) -> None:
    """A night of training must not depend on the broker's data."""
    system = System(tmp_path)
    system.start()
    sequences: list[int] = []
    restored_at: list[int] = []
    checkpoint, restored = threading.Event(), threading.Event()

    def follow(job_id: str) -> None:
        with Client(system.address) as client:
            for event in client.jobs.watch(job_id):
                sequences.append(event.sequence)
                if event.kind == "checkpoint":
                    checkpoint.set()
                if event.kind == "log" and restored_at:
                    restored.set()
                if event.kind == "restored":
                    restored_at.append(event.restored.checkpoint_step)

    with Client(system.address) as client:
        job = client.jobs.create(base_model="tiny", training_data=rows, hyperparameters=HYPERPARAMETERS)
        follower = threading.Thread(target=follow, args=(job.id,))
        follower.start()
        assert checkpoint.wait(90), system.logs()
        family = system.kill()
        assert not psutil.wait_procs(family, timeout=10)[1], "an orphan process runs"
        shutil.rmtree(tmp_path / "nats" / "store")
        system.start()
        assert restored.wait(120), system.logs()
        # The stages after the training are not tested here.
        client.jobs.cancel(job.id)
        follower.join(60)
        assert not follower.is_alive()
        job = client.jobs.get(job.id)
    system.stop()
    assert job.state == "CANCELLED"
    assert restored_at[0] >= 10, "training must resume from a checkpoint"
    assert sequences == list(range(1, job.last_sequence + 1))
    lost = [attempt for attempt in job.attempts if attempt.counted]
    assert [(attempt.stage, attempt.reason) for attempt in lost] == [("TRAINING", "KILLED")]
