"""A caller creates, watches, evaluates and downloads a job, and loads its package."""

import contextlib
import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import psutil
import pytest

from finetuneflow import Client
from finetuneflow.errors import InvalidArgument, NotFound
from finetuneflow.resources.job import Job
from tests.e2e.conftest import System

HYPERPARAMETERS = {"num_epochs": 1, "logging_steps": 5, "eval_steps": 20, "max_length": 64, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def finished_job(system: System, rows: Path) -> Job:
    with Client(system.address) as client:
        job = client.jobs.create(base_model="tiny", training_data=str(rows), hyperparameters=HYPERPARAMETERS)
        return client.jobs.wait(job.id)


def test_evaluation_shows_lower_loss_than_base_model(client: Client, finished_job: Job) -> None:
    assert (finished_job.state, finished_job.stage) == ("SUCCEEDED", "EXPORT")
    evaluation = client.evaluations.get(finished_job.evaluation_id)
    assert evaluation.delta < -0.5, "tuned must beat base on held-out rows"
    assert finished_job.tuned_model == f"ft:{finished_job.id}"


def test_event_sequences_are_dense_for_every_watcher(client: Client, finished_job: Job) -> None:
    sequences = [event.sequence for event in client.jobs.watch(finished_job.id)]
    assert sequences == list(range(1, finished_job.last_sequence + 1))
    kinds = {event.kind for event in client.jobs.events(finished_job.id)}
    assert {"state_changed", "phase", "log", "eval", "checkpoint", "complete", "sample", "artifact"} <= kinds


def test_automatic_choices_are_stored_with_their_reasons(finished_job: Job) -> None:
    fields = {resolution.field for resolution in finished_job.resolutions}
    assert {"method", "hyperparameters.precision", "hyperparameters.optim"} <= fields
    assert all(resolution.reason for resolution in finished_job.resolutions)


def test_package_contains_documented_files(client: Client, finished_job: Job, tmp_path: Path) -> None:
    client.jobs.download(finished_job.id, str(tmp_path))
    (package,) = tmp_path.rglob("finetuneflow_export.zip")
    names = set(zipfile.ZipFile(package).namelist())
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "training_config.json",
        "metrics.json",
        "report.md",
        "train_loss.png",
        "evaluation_changes.png",
        "README.md",
    } <= names
    config = json.loads(zipfile.ZipFile(package).read("adapter_config.json"))
    assert config["base_model_name_or_path"] == "tiny", "the base must be a public id, not a local path"
    metrics = json.loads(zipfile.ZipFile(package).read("metrics.json"))
    assert metrics["train_loss_curve"]
    assert metrics["eval_loss_curve"]


@pytest.mark.long
def test_late_watcher_receives_same_events_as_early_one(system: System, rows: Path) -> None:
    seen: dict[str, list[int]] = {"early": [], "late": []}

    def follow(name: str, job_id: str) -> None:
        with Client(system.address) as client:
            for event in client.jobs.watch(job_id):
                seen[name].append(event.sequence)
                if name == "early" and event.kind == "log":
                    training.set()

    training = threading.Event()
    with Client(system.address) as client:
        job = client.jobs.create(
            base_model="tiny",
            training_data=str(rows),
            hyperparameters=HYPERPARAMETERS,
            evaluation={"enabled": False},
        )
    early = threading.Thread(target=follow, args=("early", job.id))
    early.start()
    assert training.wait(60)
    late = threading.Thread(target=follow, args=("late", job.id))
    late.start()
    early.join(120)
    late.join(120)
    assert seen["early"] == seen["late"] == list(range(1, len(seen["early"]) + 1))


def test_serving_processes_do_not_load_torch(system: System, finished_job: Job) -> None:
    """Preflight, training, evaluation and export have run, none of them in a serving process."""
    for module in ("gateway", "services.probe", "services.trainer", "services.evaluator", "services.exporter"):
        (process,) = system.processes(module)
        # Without root, a process that hides from its children is closed to this test too; its size tells enough.
        with contextlib.suppress(psutil.AccessDenied):
            mapped = " ".join(region.path for region in process.memory_maps())
            assert "libtorch" not in mapped, module
        assert process.memory_info().rss < 250e6, module


def test_invalid_rows_fail_the_job_with_row_and_reason(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n{"question": "a"}\nnot json\n')
    job = client.jobs.create(base_model="tiny", training_data=str(path))
    for _ in client.jobs.watch(job.id):
        pass
    job = client.jobs.get(job.id)
    assert (job.state, job.fault) == ("FAILED", "USER_ERROR")
    failed = next(event for event in client.jobs.events(job.id) if event.kind == "stage_failed")
    told = " ".join(violation.field + violation.description for violation in failed.stage_failed.violations)
    assert "row 2" in told
    assert "row 3" in told


def test_an_unreachable_model_fails_with_advice(client: Client, rows: Path) -> None:
    job = client.jobs.create(base_model="nobody/nothing", training_data=str(rows), max_attempts=1)
    for _ in client.jobs.watch(job.id):
        pass
    job = client.jobs.get(job.id)
    assert job.state == "FAILED"
    # The network may come back, a model that does not exist will not.
    assert (job.reason, job.fault) in {("HUB_UNREACHABLE", "SYSTEM_ERROR"), ("MODEL_NOT_FOUND", "USER_ERROR")}
    assert job.advice


def test_refusals_raise_typed_exceptions(client: Client, rows: Path) -> None:
    with pytest.raises(InvalidArgument, match="learning_rate"):
        client.jobs.create(base_model="tiny", training_data=str(rows), hyperparameters={"learning_rate": -1})
    with pytest.raises(NotFound):
        client.jobs.create(base_model="tiny", training_data="ds_00000000000000000000000000")
    with pytest.raises(NotFound):
        client.jobs.get("ftjob_none")


@pytest.mark.long
def test_the_readme_example_runs(system: System, rows: Path, tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    assert "smollm2-135m" in code
    (tmp_path / "rows.jsonl").write_text("".join(rows.read_text().splitlines(keepends=True)[:40]))
    done = subprocess.run(
        [sys.executable, "-c", code.replace("smollm2-135m", "tiny")],
        cwd=tmp_path,
        env=system.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").rglob("finetuneflow_export.zip"))
