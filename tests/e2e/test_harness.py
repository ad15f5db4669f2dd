"""Tasks of lm-evaluation-harness in the whole system, from the operator's folder to the values that a user sees.

The other tests of the system have a home folder of odd characters. The library that reads the data of tasks takes paths
for patterns, and makes names of files from whole paths, so this home is a plain one.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetuneflow import Client, InvalidArgument
from tests.e2e.conftest import System
from tests.services.evaluator.harness_tasks import write_tasks


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("harness")
    system = System(folder / "home", FTF_EVALUATOR_HARNESS_TASKS=str(write_tasks(folder / "tasks")))
    system.start()
    yield system
    system.stop()


@pytest.mark.long
def test_known_benchmark_is_run_on_both_models(system: System, rows: Path) -> None:
    """A team compares its models by a benchmark that it knows, on data that it may not give away."""

    def ftf(*arguments: str) -> str:
        command = [sys.executable, "-m", "finetuneflow.cli", *arguments]
        done = subprocess.run(command, env=system.environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    with Client(system.address) as client:
        assert any(node.harness_tasks for node in client.probe.hardware())
        assert "Harness tasks\tchoices, colours, sums\n" in ftf("probe")
        with pytest.raises(InvalidArgument, match=r"Did you mean sums\?"):
            client.jobs.create(base_model="tiny", training_data=str(rows), evaluation={"harness_tasks": ["sum"]})
        job = client.jobs.create(
            base_model="tiny",
            training_data=str(rows),
            hyperparameters={"max_steps": 5, "max_length": 64},
            evaluation={"harness_tasks": ["choices"], "harness_limit": 3, "max_rows": 0, "regression": "none"},
        )
        evaluation = client.evaluations.get(client.jobs.wait(job.id).evaluation_id)
        events = list(client.jobs.events(job.id))

    assert evaluation.result is not None and evaluation.result.harness is not None
    measured = evaluation.result.harness.metrics
    assert [(each.task, each.metric, each.num_rows) for each in measured] == [
        ("colours", "acc", 3),
        ("colours", "acc_norm", 3),
    ]
    assert all(each.base is not None and each.tuned is not None for each in measured)
    details = {event.phase.detail for event in events if event.kind == "phase" and event.phase.name == "harness"}
    assert {"choices, tiny", f"choices, ft:{job.id}"} <= details
    assert "colours\tacc\t" in ftf("jobs", "get", job.id)
