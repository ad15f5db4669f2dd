"""A job on a Ray cluster of two nodes, one of which is lost and comes back."""

from pathlib import Path

import pytest

from finetuneflow import Client
from tests.e2e.conftest import System
from tests.servers import ray

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not ray.INSTALLED, reason="`make test-long` installs Ray"),
]
HYPERPARAMETERS = {"max_steps": 300, "save_steps": 50, "eval_steps": 1000, "logging_steps": 1, "max_length": 64}


def test_a_job_goes_on_when_a_lost_node_is_back(tmp_path: Path, rows: Path) -> None:
    """A machine of a cluster that fails would cost everything since the beginning, or end the job."""
    with ray.ray_cluster() as nodes:
        settings = {"FTF_TRAINER_ENGINE": "ray", "FTF_TRAINER_RAY_ADDRESS": nodes.address}
        system = System(tmp_path / "home", **settings, **nodes.client)
        system.start()
        try:
            with Client(system.address) as client:
                job = client.jobs.create(
                    base_model="tiny",
                    training_data=str(rows),
                    hyperparameters=HYPERPARAMETERS,
                    resources={"gpus": 0, "world_size": 2},
                )
                losses: dict[int, float] = {}
                failures, restored = [], []
                for event in client.jobs.watch(job.id):
                    if event.kind == "log":
                        losses[event.log.step] = event.log.loss
                    elif event.kind == "checkpoint" and not failures:
                        nodes.other.kill()
                    elif event.kind == "stage_failed":
                        failures.append(event.stage_failed)
                        nodes.other = nodes.start_other()
                    elif event.kind == "restored":
                        restored.append(event.restored)
                job = client.jobs.get(job.id)
        finally:
            system.stop()
    assert [failure.reason for failure in failures] == ["MACHINE_FAILED"], failures
    assert failures[0].message.startswith("The Ray cluster lost the node ")
    assert (job.state, job.failed_attempts) == ("SUCCEEDED", 1)
    assert [each.checkpoint_step for each in restored] == [50]
    assert sorted(losses) == list(range(1, 301))
