"""Tests for the inputs that a supervisor fetches for its child from the artifact store and the catalogue."""

import base64
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
from chassis.security.signing import SigningKey, make_signing_key
from chassis.store.artifact_store import ArtifactCorrupt, ArtifactStore
from engine.config.job import job_config
from engine.config.spec_proto import config_to_spec
from engine.errors import JobError, SystemFailure
from finetuneflow.v1.dataset_pb2 import Dataset
from finetuneflow.v1.fine_tuning_job_pb2 import STAGE_TRAINING, Checkpoint
from finetuneflow.v1.fine_tuning_job_spec_pb2 import StartMode
from finetuneflow.v1.stage_result_pb2 import (
    BaseModelIdentity,
    DataStatistics,
    EvaluationResult,
    PreflightResult,
    TrainingResult,
)
from finetuneflow.v1.work_pb2 import Assignment, ComparedModel, StoredShards, TrainingStart
from services.attempt_inputs import RETRY_SECONDS, VersionMismatch, catalogue
from services.evaluator.harness_tasks import HarnessTasks
from services.evaluator.settings import EvaluatorSettings
from services.evaluator.stage import EvaluationStage
from services.evaluator.worker.child_input import EvaluationInput
from services.exporter.gguf_types import GgufTypes
from services.exporter.settings import ExporterSettings
from services.exporter.stage import ExportStage
from services.exporter.worker.child_input import ExportInput
from services.probe.settings import ProbeSettings
from services.probe.stage import PreflightStage
from services.probe.worker.child_input import PreflightInput
from services.trainer.settings import TrainerSettings
from services.trainer.stage import TrainingStage
from services.trainer.worker.child_input import TrainingInput
from tests.fakes.hub import Hub
from tests.services.evaluator.harness_tasks import write_tasks
from tests.tiny_models import make_tiny_model

Spec = TypeVar("Spec", bound=BaseModel)


@dataclass
class NodeWithJob:
    """A node with a job whose training has checkpoints."""

    home: Path
    models: dict[str, Path]
    store: ArtifactStore
    assignment: Assignment
    workdir: Path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def node(tmp_path: Path, model: Path) -> NodeWithJob:
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
            "recipe": "finetuneflow",
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
    return NodeWithJob(tmp_path / "home", models, store, assignment, workdir)


def read(kind: type[Spec], command: ChildCommand) -> Spec:
    """input.json as the child reads it."""
    return kind.model_validate_json(Path(command.argv[-1]).read_bytes())


async def prepared_input(node: NodeWithJob, store_retry_seconds: Sequence[float] = RETRY_SECONDS) -> TrainingInput:
    settings = TrainerSettings(home=node.home, models=node.models, threads=3)
    stage = TrainingStage(settings, catalogue(settings), store_retry_seconds)
    command = await stage.prepare(node.assignment, node.workdir, node.store, {})
    assert command.env["OMP_NUM_THREADS"] == "3"
    assert command.env["OMP_WAIT_POLICY"] == "PASSIVE"
    assert command.late_env["CUDA_VISIBLE_DEVICES"] == ""
    return read(TrainingInput, command)


def restored_step(child_input: TrainingInput) -> int:
    assert child_input.resume is not None
    return int(json.loads((child_input.resume.path / "checkpoint.json").read_text())["step"])


async def test_training_resumes_from_newest_checkpoint(node: NodeWithJob) -> None:
    child_input = await prepared_input(node)
    assert child_input.resume is not None
    assert restored_step(child_input) == 20
    assert child_input.resume.manifest_sha256 == node.assignment.checkpoints[0].manifest_sha256
    assert not child_input.unusable_checkpoints
    assert (child_input.data_dir / "train" / "data.arrow").read_bytes() == b"shard"
    assert (child_input.total_steps, child_input.prior_runtime_seconds) == (30, 12.5)
    assert (child_input.model.id, child_input.threads) == ("tiny", 3)


def start_from_another_job(node: NodeWithJob, mode: str = "continue") -> None:
    """Names a checkpoint of another job as the start of this one's training."""
    given = node.assignment
    folder = node.workdir.with_name("adapter")
    folder.mkdir()
    (folder / "checkpoint.json").write_text("{}")
    path = "jobs/ftjob_0/training/1/checkpoints/step-5"
    sha256 = node.store.put_folder(folder, f"default/{path}").sha256
    checkpoint = Checkpoint(job_id="ftjob_0", step=5, path=path, manifest_sha256=sha256)
    weights = given.preflight.base_model.weights_sha256
    given.start.CopyFrom(TrainingStart(checkpoint=checkpoint, base_weights_sha256=weights))
    for spec in (given.merged_spec, given.resolved_spec):
        spec.start_from = "ft:ftjob_0@5"
        spec.start_mode = StartMode.Value(f"START_MODE_{mode.upper()}")


@pytest.mark.parametrize(
    ("mode", "resumed", "needed"), [("continue", False, True), ("continue", True, False), ("new", True, True)]
)
async def test_training_gets_the_adapter_that_it_starts_from(
    node: NodeWithJob, mode: str, resumed: bool, needed: bool
) -> None:
    start_from_another_job(node, mode)
    if not resumed:
        del node.assignment.checkpoints[:]
    child_input = await prepared_input(node)
    assert (child_input.start is not None) == needed
    if child_input.start:
        assert (child_input.start.path / "checkpoint.json").read_text() == "{}"


async def test_damaged_start_ends_the_attempt(node: NodeWithJob, tmp_path: Path) -> None:
    """The training would otherwise begin with other weights than the caller named."""
    start_from_another_job(node)
    del node.assignment.checkpoints[:]
    _flip(tmp_path / "artifacts/default/jobs/ftjob_0/training/1/checkpoints/step-5")
    with pytest.raises(ArtifactCorrupt):
        await prepared_input(node, store_retry_seconds=())


async def test_adapter_of_other_base_weights_is_refused(node: NodeWithJob) -> None:
    """An alias may have got new files since the adapter was trained on the old ones."""
    start_from_another_job(node)
    node.assignment.start.base_weights_sha256 = "0" * 64
    settings = ProbeSettings(home=node.home, models=node.models)
    with pytest.raises(JobError, match=r"differ from those that ft:ftjob_0@5 was trained on") as caught:
        await PreflightStage(settings, catalogue(settings)).prepare(node.assignment, node.workdir, node.store, {})
    assert caught.value.reason == "BASE_MODEL_CHANGED"


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
async def test_damaged_checkpoint_is_skipped(node: NodeWithJob, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Otherwise one flipped bit on the disk would end a week's training, or corrupt its result."""
    damage(tmp_path / "artifacts/default/jobs/ftjob_1/training/1/checkpoints/step-20")
    child_input = await prepared_input(node)
    assert restored_step(child_input) == 10
    (unusable,) = child_input.unusable_checkpoints
    assert unusable.step == 20 and unusable.problem


async def test_a_first_attempt_starts_from_the_beginning(node: NodeWithJob) -> None:
    del node.assignment.checkpoints[:]
    child_input = await prepared_input(node)
    assert child_input.resume is None and not child_input.unusable_checkpoints


async def test_training_restarts_if_every_checkpoint_is_damaged(node: NodeWithJob, tmp_path: Path) -> None:
    """A job whose only checkpoint is lost can still be trained."""
    for step in (10, 20):
        _flip(tmp_path / f"artifacts/default/jobs/ftjob_1/training/1/checkpoints/step-{step}")
    child_input = await prepared_input(node)
    assert child_input.resume is None
    assert [unusable.step for unusable in child_input.unusable_checkpoints] == [20, 10]


async def test_training_does_not_restart_if_all_checkpoints_are_missing(node: NodeWithJob) -> None:
    """An unmounted bucket would otherwise cost every trained step, without an error."""
    for checkpoint in node.assignment.checkpoints:
        node.store.delete(f"default/{checkpoint.path}")
    with pytest.raises(SystemFailure) as caught:
        await prepared_input(node)
    assert caught.value.reason == "CHECKPOINTS_MISSING" and caught.value.advice


async def test_read_error_of_store_does_not_skip_checkpoint(node: NodeWithJob, tmp_path: Path) -> None:
    """Otherwise a network outage of a second would resume an older checkpoint, or none."""
    for step in (10, 20):
        manifest = tmp_path / f"artifacts/default/jobs/ftjob_1/training/1/checkpoints/step-{step}/manifest.json"
        manifest.unlink()
        manifest.symlink_to(manifest.name)
    with pytest.raises(SystemFailure) as caught:
        await prepared_input(node, store_retry_seconds=())
    assert caught.value.reason == "CHECKPOINTS_MISSING"


async def test_store_outage_is_retried(node: NodeWithJob, tmp_path: Path) -> None:
    """A short outage would otherwise use up one of the job's attempts."""
    away, store = tmp_path / "away", tmp_path / "artifacts"
    store.rename(away)

    class Operator(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            away.rename(store)

    operator = Operator()
    logging.getLogger("services.attempt_inputs").addHandler(operator)
    try:
        assert restored_step(await prepared_input(node, store_retry_seconds=(0.01,))) == 20
    finally:
        logging.getLogger("services.attempt_inputs").removeHandler(operator)


async def test_model_with_changed_weights_is_refused(node: NodeWithJob) -> None:
    node.assignment.preflight.base_model.weights_sha256 = "f" * 64
    with pytest.raises(JobError) as caught:
        await prepared_input(node)
    assert caught.value.reason == "BASE_MODEL_CHANGED"


async def test_spec_of_another_version_is_refused(node: NodeWithJob) -> None:
    node.assignment.resolved_spec.hyperparameters.lr_scheduler_type = "of-tomorrow"
    with pytest.raises(VersionMismatch, match="lr_scheduler_type"):
        await prepared_input(node)


async def test_preflight_input_has_merged_spec_and_fields_set_by_caller(node: NodeWithJob) -> None:
    node.assignment.spec.Clear()
    node.assignment.spec.base_model = "tiny"
    settings = ProbeSettings(home=node.home, models=node.models)
    command = await PreflightStage(settings, catalogue(settings)).prepare(node.assignment, node.workdir, node.store, {})
    child_input = read(PreflightInput, command)
    assert child_input.given == {"base_model": "tiny"}
    assert child_input.config.hyperparameters.precision == "fp32", "the recipe is merged at create"
    assert child_input.sources["ds_1"].name == "rows.jsonl"
    assert json.loads(child_input.sources["ds_1"].read_text())["answer"] == "That."
    assert child_input.model.num_parameters > 0
    assert child_input.hardware is not None
    assert "memory_total_bytes" in child_input.hardware, "without a trainer, the probe's own hardware is used"
    node.assignment.hardware.node_id = "trainer-1"
    command = await PreflightStage(settings, catalogue(settings)).prepare(node.assignment, node.workdir, node.store, {})
    assert read(PreflightInput, command).hardware == {"node_id": "trainer-1"}


async def test_unknown_model_is_a_user_error(node: NodeWithJob) -> None:
    node.assignment.merged_spec.base_model = "tinny"
    settings = ProbeSettings(home=node.home, models=node.models)
    with pytest.raises(JobError) as caught:
        await PreflightStage(settings, catalogue(settings)).prepare(node.assignment, node.workdir, node.store, {})
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert "tiny" in caught.value.message


async def test_evaluation_reads_rows_of_the_hub_at_one_commit(node: NodeWithJob, tmp_path: Path) -> None:
    """Which rows were measured must be known: the dataset may have other ones tomorrow."""
    commit = "a" * 40
    (tmp_path / commit).mkdir()
    (tmp_path / commit / "train.jsonl").write_text('{"question": "Why?", "answer": "So."}\n')
    identity = BaseModelIdentity(id="tiny")
    node.assignment.comparison.model.CopyFrom(ComparedModel(id="tiny", base_model=identity))
    node.assignment.comparison.data.add(dataset="hf://org/rows")
    node.assignment.comparison.data.add(dataset="ds_1")
    settings = EvaluatorSettings(home=node.home, models=node.models)
    with Hub(tmp_path, {"org/rows": {commit: tmp_path / commit}}).asked():
        command = await EvaluationStage(settings, catalogue(settings), HarnessTasks(None)).prepare(
            node.assignment, node.workdir, node.store, {}
        )
    given = read(EvaluationInput, command)
    pinned = f"hf://org/rows@{commit}/train.jsonl"
    assert [source.dataset for source in given.sources] == [pinned, "ds_1"]
    assert json.loads(given.files[pinned].read_text())["question"] == "Why?"
    assert given.findings == [f"Rows of hf://org/rows were read from {pinned}."]
    assert given.base is None and given.config.hyperparameters.max_length <= given.tuned.model.context_length
    node.assignment.comparison.data[0].dataset = "hf://org/unknown"
    with Hub(tmp_path, {}).asked(), pytest.raises(JobError) as raised:
        await EvaluationStage(settings, catalogue(settings), HarnessTasks(None)).prepare(
            node.assignment, tmp_path / "w", node.store, {}
        )
    assert raised.value.reason == "DATASET_NOT_FOUND" and raised.value.violations[0].field == "data[0].dataset"


async def test_evaluation_and_export_use_the_best_checkpoint(node: NodeWithJob, tmp_path: Path) -> None:
    evaluator = EvaluatorSettings(home=node.home, models=node.models)
    stage = EvaluationStage(evaluator, catalogue(evaluator), HarnessTasks(None))
    node.assignment.resolved_spec.chat_template = "{{ messages[0].content }}"
    command = await stage.prepare(node.assignment, node.workdir, node.store, {})
    judged = read(EvaluationInput, command)
    assert judged.tuned.chat_template == "{{ messages[0].content }}"

    exporter = ExporterSettings(home=node.home, models=node.models)
    pinned = f"hf://org/rows@{'a' * 40}/rows.jsonl"
    node.assignment.preflight.hub_datasets.add(asked="hf://org/rows", pinned=pinned, filename="rows.jsonl")
    other = tmp_path / "other"
    other.mkdir()
    command = await export_stage(exporter).prepare(node.assignment, other, node.store, {})
    packed = read(ExportInput, command)
    assert judged.tuned.checkpoint is not None and judged.base.checkpoint is None
    for folder in (judged.tuned.checkpoint.path, packed.adapter_dir):
        assert json.loads((folder / "checkpoint.json").read_text()) == {"step": 10}
    assert packed.evaluation.tuned_loss == 2.0
    assert [dataset.id for dataset in packed.job.datasets] == ["ds_1", pinned]


async def test_export_of_a_merged_model_reads_only_the_held_out_rows(node: NodeWithJob, tmp_path: Path) -> None:
    """The rows of the training may be gigabytes, and the adapter alone needs none if no template wrote them."""
    shards = tmp_path / "both"
    for name in ("train", "eval"):
        (shards / name).mkdir(parents=True)
        (shards / name / "data.arrow").write_bytes(name.encode())
    (shards / "eval_rows.jsonl").write_text("rows")
    stored = node.store.put_folder(shards, "default/jobs/ftjob_1/preflight/2/shards")
    preflight = node.assignment.preflight
    preflight.shards_path, preflight.shards_manifest_sha256 = "jobs/ftjob_1/preflight/2/shards", stored.sha256
    preflight.evaluation_data.num_examples, preflight.training_data.format = 1, "text"
    exporter = ExporterSettings(home=node.home, models=node.models)

    async def prepared(name: str) -> ExportInput:
        folder = tmp_path / name
        folder.mkdir()
        command = await export_stage(exporter).prepare(node.assignment, folder, node.store, {})
        return read(ExportInput, command)

    assert (await prepared("adapter")).held_out is None
    preflight.training_data.format = "chat"
    texts = (await prepared("conversations")).held_out_texts
    assert texts is not None and texts.read_text() == "rows"
    preflight.training_data.format = "text"
    node.assignment.resolved_spec.export.formats.append("EXPORT_FORMAT_MERGED")
    found = (await prepared("merged")).held_out
    assert found is not None and (found / "data.arrow").read_bytes() == b"eval"
    assert [path.name for path in found.parent.iterdir()] == ["eval"]
    preflight.evaluation_data.num_examples = 0
    assert (await prepared("without")).held_out is None


async def test_export_of_a_base_model_reads_that_model_alone(node: NodeWithJob, tmp_path: Path) -> None:
    """It has no job, whose checkpoint, rows or figures could be read, and its package is signed as one of its own."""
    file = tmp_path / "signing-key.pem"
    make_signing_key(file)
    full = node.assignment
    given = Assignment(job_id="ex_1", fine_tuning_job_id="ex_1", tenant="default", resolved_spec=full.resolved_spec)
    given.resolved_spec.export.formats[:] = ["EXPORT_FORMAT_MERGED"]
    given.comparison.model.CopyFrom(ComparedModel(id="tiny", base_model=BaseModelIdentity(id="tiny")))
    exporter = ExporterSettings(home=node.home, models=node.models, signing_key_file=file)
    command = await export_stage(exporter).prepare(given, node.workdir, node.store, {})
    child_input = read(ExportInput, command)
    assert child_input.of_base and child_input.adapter_dir == child_input.model.path == node.models["tiny"]
    assert child_input.model.weights_sha256 and (child_input.config.method, child_input.packed_step) == ("full", 0)
    assert child_input.signing is not None
    assert (child_input.job.id, child_input.signing.statement.job_id, child_input.signing.statement.step) == (
        "ex_1", "ex_1", 0,
    )  # fmt: skip
    assert node.models["tiny"] in command.reads


async def test_evaluator_without_the_task_of_the_harness_says_what_to_set(node: NodeWithJob) -> None:
    """Another evaluator may have it; without these words an operator would search the task's file."""
    evaluator = EvaluatorSettings(home=node.home, models=node.models, node_id="evaluator-2")
    stage = EvaluationStage(evaluator, catalogue(evaluator), HarnessTasks(None))
    node.assignment.resolved_spec.evaluation.harness_tasks.append("sums")

    with pytest.raises(SystemFailure) as caught:
        await stage.prepare(node.assignment, node.workdir, node.store, {})

    assert caught.value.reason == "HARNESS_TASK_MISSING"
    assert "evaluator-2" in caught.value.message and "sums" in caught.value.message
    assert "FTF_EVALUATOR_HARNESS_TASKS" in caught.value.advice and "[harness]" in caught.value.advice


async def test_child_may_read_the_folder_of_tasks_only_if_it_needs_them(node: NodeWithJob, tmp_path: Path) -> None:
    """The operator's tasks may hold the expected answers of a benchmark."""
    tasks = HarnessTasks(write_tasks(tmp_path / "tasks"))
    tasks.read()
    evaluator = EvaluatorSettings(home=node.home, models=node.models)
    stage = EvaluationStage(evaluator, catalogue(evaluator), tasks)

    without = await stage.prepare(node.assignment, node.workdir, node.store, {})
    node.assignment.resolved_spec.evaluation.harness_tasks.append("choices")
    other = tmp_path / "other"
    other.mkdir()
    with_tasks = await stage.prepare(node.assignment, other, node.store, {})

    assert tasks.folder and tasks.folder not in without.reads and tasks.folder in with_tasks.reads
    assert read(EvaluationInput, with_tasks).harness_folder == tasks.folder


def export_stage(settings: ExporterSettings) -> ExportStage:
    types = GgufTypes(settings.libllama)
    types.read()
    return ExportStage(settings, catalogue(settings), types)


async def test_exporter_without_the_library_says_what_to_set(node: NodeWithJob, tmp_path: Path) -> None:
    """Another exporter may have it, and takes the next attempt."""
    exporter = ExporterSettings(home=node.home, models=node.models, libllama=tmp_path)
    export = node.assignment.resolved_spec.export
    export.formats.append("EXPORT_FORMAT_GGUF")
    export.gguf_types[:] = ["q8_0", "q4_k_m"]

    with pytest.raises(SystemFailure) as caught:
        await export_stage(exporter).prepare(node.assignment, node.workdir, node.store, {})

    assert caught.value.reason == "GGUF_QUANTIZER_MISSING"
    assert f"there is no libllama.v0.5.0.so in {tmp_path}" in caught.value.message
    assert "FTF_EXPORTER_LIBLLAMA" in caught.value.advice and "@node-llama-cpp/linux-x64@" in caught.value.advice


async def test_child_may_read_the_library_only_if_it_needs_it(node: NodeWithJob, tmp_path: Path) -> None:
    types = GgufTypes(tmp_path)
    types.problem = ""
    exporter = ExporterSettings(home=node.home, models=node.models)
    stage, export = ExportStage(exporter, catalogue(exporter), types), node.assignment.resolved_spec.export
    export.formats.append("EXPORT_FORMAT_GGUF")
    export.gguf_types[:] = ["q8_0"]

    without = await stage.prepare(node.assignment, node.workdir, node.store, {})
    export.gguf_types[:] = ["q6_k"]
    other = tmp_path / "other"
    other.mkdir()
    with_library = await stage.prepare(node.assignment, other, node.store, {})

    assert tmp_path not in without.reads and tmp_path in with_library.reads
    assert (read(ExportInput, without).libllama, read(ExportInput, with_library).libllama) == (None, tmp_path)


def test_settings_are_read_from_environment() -> None:
    """Operators set models, ports and pools without changing our files."""
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


async def test_token_shards_of_an_earlier_job_are_reused_unless_damaged(node: NodeWithJob) -> None:
    """The same files, tokenizer and settings are tokenised once; damaged shards are made again."""
    settings = ProbeSettings(home=node.home, models=node.models)

    async def prepared(number: int) -> PreflightInput:
        workdir = node.workdir / str(number)
        workdir.mkdir()
        stage = PreflightStage(settings, catalogue(settings))
        return read(PreflightInput, await stage.prepare(node.assignment, workdir, node.store, {}))

    child_input = await prepared(1)
    assert child_input.shards is None
    assert len(child_input.content_key) == 64
    folder = node.workdir / "made"
    folder.mkdir()
    (folder / "prepared.json").write_text("{}")
    path = f"jobs/ftjob_0/preflight/1/shards/{child_input.content_key}"
    stored = node.store.put_folder(folder, f"default/{path}")
    made = StoredShards(content_key=child_input.content_key, path=path, manifest_sha256=stored.sha256)
    node.assignment.shards.extend([StoredShards(content_key="0" * 64, path="jobs/other"), made])
    found = await prepared(2)
    assert found.content_key == child_input.content_key
    assert found.shards is not None
    assert (found.shards / "prepared.json").read_text() == "{}"
    with node.store.begin_write(f"default/{path}/prepared.json") as writer:
        writer.write(b"[]")
        writer.commit()
    assert (await prepared(3)).shards is None
    node.assignment.merged_spec.hyperparameters.max_length = 64
    assert (await prepared(4)).content_key != child_input.content_key


async def test_child_of_an_export_gets_a_key_for_that_export_only(node: NodeWithJob, tmp_path: Path) -> None:
    """It reads what strangers wrote. With the operator's key it could sign any model in the operator's name."""
    file = tmp_path / "signing-key.pem"
    make_signing_key(file)
    exporter = ExporterSettings(home=node.home, models=node.models, signing_key_file=file)
    command = await export_stage(exporter).prepare(node.assignment, node.workdir, node.store, {})
    child_input = read(ExportInput, command)
    signing = child_input.signing
    assert signing is not None and (signing.statement.job_id, signing.statement.step) == ("ftjob_1", 10)
    assert SigningKey.of_bytes(base64.b64decode(signing.private_key)).public_pem != SigningKey.read(file).public_pem
    assert str(file) not in " ".join([*command.argv, *command.env.values(), *map(str, command.reads)])
    assert str(file) not in child_input.model_dump_json()
