"""Tests for the inputs that a supervisor fetches for its child from the artifact store and the catalogue."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from pydantic import BaseModel

from chassis.child.child_process import ChildCommand
from chassis.store.artifact_store import ArtifactStore
from engine.config.job import job_config
from engine.config.spec_proto import config_to_spec
from engine.errors import JobError, SystemFailure
from finetuneflow.v1.dataset_pb2 import Dataset
from finetuneflow.v1.fine_tuning_job_pb2 import STAGE_TRAINING, Checkpoint
from finetuneflow.v1.stage_result_pb2 import (
    BaseModelIdentity,
    DataStatistics,
    EvaluationResult,
    PreflightResult,
    TrainingResult,
)
from finetuneflow.v1.work_pb2 import Assignment, StoredShards
from services.attempt_inputs import RETRY_SECONDS, VersionMismatch, catalogue
from services.evaluator.settings import EvaluatorSettings
from services.evaluator.stage import EvaluationStage
from services.evaluator.worker.child_input import EvaluationInput
from services.exporter.settings import ExporterSettings
from services.exporter.stage import ExportStage
from services.exporter.worker.child_input import ExportInput
from services.probe.settings import ProbeSettings
from services.probe.stage import PreflightStage
from services.probe.worker.child_input import PreflightInput
from services.trainer.settings import TrainerSettings
from services.trainer.stage import TrainingStage
from services.trainer.worker.child_input import TrainingInput
from tests.tiny_models import make_tiny_model

Spec = TypeVar("Spec", bound=BaseModel)


@dataclass
class Place:
    """A machine with one job half done."""

    home: Path
    models: dict[str, Path]
    store: ArtifactStore
    assignment: Assignment
    workdir: Path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def place(tmp_path: Path, model: Path) -> Place:
    store = ArtifactStore((tmp_path / "artifacts").as_uri())
    models = {"tiny": model}
    local = catalogue(TrainerSettings(home=tmp_path / "home", models=models)).fetch("tiny")

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "What?", "answer": "That."}\n')
    dataset = store.put_file(rows, "default/datasets/ds_1/rows.jsonl")
    shards = tmp_path / "shards"
    (shards / "train").mkdir(parents=True)
    (shards / "train" / "data.arrow").write_bytes(b"shard")
    stored_shards = store.put_folder(shards, "default/jobs/ftjob_1/preflight/1/shards")
    checkpoints = []
    for step in (10, 20):
        folder = tmp_path / f"step-{step}"
        folder.mkdir()
        (folder / "checkpoint.json").write_text(json.dumps({"step": step}))
        path = f"jobs/ftjob_1/training/1/checkpoints/step-{step}"
        stored = store.put_folder(folder, f"default/{path}")
        checkpoints.insert(0, Checkpoint(job_id="ftjob_1", step=step, path=path, manifest_sha256=stored.sha256))

    config = job_config(
        {
            "base_model": "tiny",
            "method": "lora",
            "training_data": [{"dataset": "ds_1"}],
            "hyperparameters": {"precision": "fp32", "optim": "adamw_torch", "gradient_checkpointing": False},
            "resources": {"gpus": 0},
        }
    )
    assignment = Assignment(
        job_id="ftjob_1",
        fine_tuning_job_id="ftjob_1",
        tenant="default",
        stage=STAGE_TRAINING,
        attempt=2,
        claim_id="0" * 32,
        spec=config_to_spec(config),
        merged_spec=config_to_spec(config),
        resolved_spec=config_to_spec(config),
        datasets=[Dataset(id="ds_1", filename="rows.jsonl", path="datasets/ds_1/rows.jsonl", sha256=dataset.sha256)],
        checkpoints=checkpoints,
        preflight=PreflightResult(
            base_model=BaseModelIdentity(id="tiny", revision=local.revision, weights_sha256=local.weights_sha256),
            training_data=DataStatistics(num_examples=1, format="question_answer"),
            total_steps=30,
            shards_path="jobs/ftjob_1/preflight/1/shards",
            shards_manifest_sha256=stored_shards.sha256,
        ),
        training=TrainingResult(
            best_step=10,
            total_steps=30,
            best_checkpoint_path=checkpoints[1].path,
            best_checkpoint_manifest_sha256=checkpoints[1].manifest_sha256,
        ),
        evaluation=EvaluationResult(tuned_loss=2.0),
        prior_training_seconds=12.5,
    )
    workdir = tmp_path / "work"
    workdir.mkdir()
    return Place(tmp_path / "home", models, store, assignment, workdir)


def read(kind: type[Spec], command: ChildCommand) -> Spec:
    """input.json as the child reads it."""
    return kind.model_validate_json(Path(command.argv[-1]).read_bytes())


async def training_spec(place: Place, store_retry_seconds: Sequence[float] = RETRY_SECONDS) -> TrainingInput:
    settings = TrainerSettings(home=place.home, models=place.models, threads=3)
    stage = TrainingStage(settings, catalogue(settings), store_retry_seconds)
    command = await stage.prepare(place.assignment, place.workdir, place.store)
    assert command.env["OMP_NUM_THREADS"] == "3"
    assert command.env["OMP_WAIT_POLICY"] == "PASSIVE"
    assert command.late_env["CUDA_VISIBLE_DEVICES"] == ""
    return read(TrainingInput, command)


def restored_step(spec: TrainingInput) -> int:
    assert spec.resume is not None
    return int(json.loads((spec.resume.path / "checkpoint.json").read_text())["step"])


async def test_a_training_goes_on_from_the_newest_checkpoint(place: Place) -> None:
    spec = await training_spec(place)
    assert spec.resume is not None
    assert restored_step(spec) == 20
    assert spec.resume.manifest_sha256 == place.assignment.checkpoints[0].manifest_sha256
    assert not spec.unusable_checkpoints
    assert (spec.data_dir / "train" / "data.arrow").read_bytes() == b"shard"
    assert (spec.total_steps, spec.prior_runtime_seconds) == (30, 12.5)
    assert (spec.model.id, spec.threads) == ("tiny", 3)


def _flip(folder: Path) -> None:
    (folder / "checkpoint.json").write_text('{"step": 21}')


def _truncate(folder: Path) -> None:
    os.truncate(folder / "checkpoint.json", 3)


def _rewrite_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    "damage",
    [_flip, _truncate, _rewrite_manifest, shutil.rmtree, lambda folder: (folder / "checkpoint.json").unlink()],
    ids=["flipped", "truncated", "manifest", "gone", "file gone"],
)
async def test_a_checkpoint_that_does_not_verify_is_passed_over(
    place: Place, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Otherwise one flipped bit on the disk would end a week's training, or poison it."""
    damage(tmp_path / "artifacts/default/jobs/ftjob_1/training/1/checkpoints/step-20")
    spec = await training_spec(place)
    assert restored_step(spec) == 10
    (unusable,) = spec.unusable_checkpoints
    assert unusable.step == 20 and unusable.problem


async def test_a_first_attempt_starts_from_the_beginning(place: Place) -> None:
    del place.assignment.checkpoints[:]
    spec = await training_spec(place)
    assert spec.resume is None and not spec.unusable_checkpoints


async def test_where_every_checkpoint_is_damaged_it_starts_again(place: Place, tmp_path: Path) -> None:
    """A job whose only checkpoint is lost can still be trained."""
    for step in (10, 20):
        _flip(tmp_path / f"artifacts/default/jobs/ftjob_1/training/1/checkpoints/step-{step}")
    spec = await training_spec(place)
    assert spec.resume is None
    assert [unusable.step for unusable in spec.unusable_checkpoints] == [20, 10]


async def test_checkpoints_that_all_vanished_are_no_reason_to_train_from_the_beginning(place: Place) -> None:
    """A bucket that was not mounted would otherwise cost every step that was trained, without a word."""
    for checkpoint in place.assignment.checkpoints:
        place.store.delete(f"default/{checkpoint.path}")
    with pytest.raises(SystemFailure) as caught:
        await training_spec(place)
    assert caught.value.reason == "CHECKPOINTS_MISSING" and caught.value.advice


async def test_a_store_that_fails_to_read_is_not_a_damaged_checkpoint(place: Place, tmp_path: Path) -> None:
    """An older checkpoint, or none, would be resumed from because of a network that was down for a second."""
    for step in (10, 20):
        manifest = tmp_path / f"artifacts/default/jobs/ftjob_1/training/1/checkpoints/step-{step}/manifest.json"
        manifest.unlink()
        manifest.symlink_to(manifest.name)
    with pytest.raises(SystemFailure) as caught:
        await training_spec(place, store_retry_seconds=())
    assert caught.value.reason == "CHECKPOINTS_MISSING"


async def test_a_store_that_comes_back_is_waited_for(place: Place, tmp_path: Path) -> None:
    """A moment's outage would otherwise use up one of the job's attempts."""
    away, store = tmp_path / "away", tmp_path / "artifacts"
    store.rename(away)

    class Operator(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            away.rename(store)

    operator = Operator()
    logging.getLogger("services.attempt_inputs").addHandler(operator)
    try:
        assert restored_step(await training_spec(place, store_retry_seconds=(0.01,))) == 20
    finally:
        logging.getLogger("services.attempt_inputs").removeHandler(operator)


async def test_other_weights_under_the_same_name_are_refused(place: Place) -> None:
    place.assignment.preflight.base_model.weights_sha256 = "f" * 64
    with pytest.raises(JobError) as caught:
        await training_spec(place)
    assert caught.value.reason == "BASE_MODEL_CHANGED"


async def test_a_spec_of_another_version_is_not_half_understood(place: Place) -> None:
    place.assignment.resolved_spec.hyperparameters.lr_scheduler_type = "of-tomorrow"
    with pytest.raises(VersionMismatch, match="lr_scheduler_type"):
        await training_spec(place)


async def test_preflight_gets_the_merged_spec_and_the_fields_its_caller_set(place: Place) -> None:
    place.assignment.spec.Clear()
    place.assignment.spec.base_model = "tiny"
    settings = ProbeSettings(home=place.home, models=place.models)
    command = await PreflightStage(settings, catalogue(settings)).prepare(place.assignment, place.workdir, place.store)
    spec = read(PreflightInput, command)
    assert spec.given == {"base_model": "tiny"}
    assert spec.config.hyperparameters.precision == "fp32", "merged once, at create"
    assert spec.sources["ds_1"].name == "rows.jsonl"
    assert json.loads(spec.sources["ds_1"].read_text())["answer"] == "That."
    assert spec.model.num_parameters > 0
    assert spec.hardware is not None
    assert "memory_total_bytes" in spec.hardware, "without a trainer it plans for its own machine"
    place.assignment.hardware.node_id = "trainer-1"
    command = await PreflightStage(settings, catalogue(settings)).prepare(place.assignment, place.workdir, place.store)
    assert read(PreflightInput, command).hardware == {"node_id": "trainer-1"}


async def test_an_unknown_model_is_the_callers_to_mend(place: Place) -> None:
    place.assignment.merged_spec.base_model = "tinny"
    settings = ProbeSettings(home=place.home, models=place.models)
    with pytest.raises(JobError) as caught:
        await PreflightStage(settings, catalogue(settings)).prepare(place.assignment, place.workdir, place.store)
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert "tiny" in caught.value.message


async def test_evaluation_and_export_get_the_best_checkpoint_not_the_newest(place: Place, tmp_path: Path) -> None:
    evaluator = EvaluatorSettings(home=place.home, models=place.models)
    stage = EvaluationStage(evaluator, catalogue(evaluator))
    command = await stage.prepare(place.assignment, place.workdir, place.store)
    judged = read(EvaluationInput, command)

    exporter = ExporterSettings(home=place.home, models=place.models)
    pinned = f"hf://org/rows@{'a' * 40}/rows.jsonl"
    place.assignment.preflight.hub_datasets.add(asked="hf://org/rows", pinned=pinned, filename="rows.jsonl")
    other = tmp_path / "other"
    other.mkdir()
    command = await ExportStage(exporter, catalogue(exporter)).prepare(place.assignment, other, place.store)
    packed = read(ExportInput, command)
    for folder in (judged.adapter_dir, packed.adapter_dir):
        assert json.loads((folder / "checkpoint.json").read_text()) == {"step": 10}
    assert packed.evaluation.tuned_loss == 2.0
    assert [dataset.id for dataset in packed.job.datasets] == ["ds_1", pinned]


def test_settings_come_from_the_environment() -> None:
    """An operator's models, ports and pools, without a file of ours being touched."""
    script = (
        "from services.trainer.settings import TrainerSettings as S; s = S();"
        "print(s.listen, s.pool, s.models['mine'], s.child_threads, S.model_fields['listen'].default)"
    )
    environment = {
        "FTF_LISTEN": "0.0.0.0:1",
        "FTF_TRAINER_LISTEN": "0.0.0.0:2",
        "FTF_POOL": "big",
        "FTF_MODELS": '{"mine": "/models/mine"}',
        "FTF_TRAINER_THREADS": "5",
        "PATH": "/usr/bin",
    }
    printed = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert printed.stdout.split() == ["0.0.0.0:2", "big", "/models/mine", "5", "127.0.0.1:7462"]


async def test_token_shards_of_an_earlier_job_are_taken_unless_they_are_damaged(place: Place) -> None:
    """The same files, tokenizer and settings are tokenised once; what is not as it was hashed is made anew."""
    settings = ProbeSettings(home=place.home, models=place.models)

    async def prepared(number: int) -> PreflightInput:
        workdir = place.workdir / str(number)
        workdir.mkdir()
        stage = PreflightStage(settings, catalogue(settings))
        return read(PreflightInput, await stage.prepare(place.assignment, workdir, place.store))

    spec = await prepared(1)
    assert spec.shards is None
    assert len(spec.content_key) == 64
    folder = place.workdir / "made"
    folder.mkdir()
    (folder / "prepared.json").write_text("{}")
    path = f"jobs/ftjob_0/preflight/1/shards/{spec.content_key}"
    stored = place.store.put_folder(folder, f"default/{path}")
    made = StoredShards(content_key=spec.content_key, path=path, manifest_sha256=stored.sha256)
    place.assignment.shards.extend([StoredShards(content_key="0" * 64, path="jobs/other"), made])
    found = await prepared(2)
    assert found.content_key == spec.content_key
    assert found.shards is not None
    assert (found.shards / "prepared.json").read_text() == "{}"
    with place.store.begin_write(f"default/{path}/prepared.json") as writer:
        writer.write(b"[]")
        writer.commit()
    assert (await prepared(3)).shards is None
    place.assignment.merged_spec.hyperparameters.max_length = 64
    assert (await prepared(4)).content_key != spec.content_key
