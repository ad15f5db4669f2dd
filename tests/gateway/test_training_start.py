"""Jobs that start from the adapter of another job, over a real channel."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from sqlmodel import select

from chassis.errors import FailedPrecondition, ServiceError
from chassis.store.artifact_store import ArtifactStore
from engine.catalogue import Catalogue
from engine.config.job import job_config
from engine.config.spec_proto import spec_to_dict
from engine.config.start import trained_datasets
from finetuneflow.v1 import fine_tuning_service_pb2 as api
from finetuneflow.v1.event_pb2 import CheckpointSaved, ConfigResolved, StageCompleted
from finetuneflow.v1.fine_tuning_job_pb2 import FineTuningJob
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec, StartMode, TrainingMethod
from finetuneflow.v1.fine_tuning_service_pb2_grpc import FineTuningServiceStub
from finetuneflow.v1.stage_result_pb2 import BaseModelIdentity, PreflightResult, TrainingResult
from gateway.servicers.datasets import refuse_if_used
from gateway.servicers.fine_tuning import FineTuning, add_to_server
from gateway.servicers.work import WorkMethods
from gateway.sql.database import Database
from gateway.sql.tables import UploadedDataset, Work, now
from gateway.work.kinds import FINE_TUNING_JOB
from gateway.work.ledger import Ledger
from gateway.work.worker_requests import WorkerRequests
from tests.gateway.conftest import Recorder
from tests.gateway.jobs import Worker
from tests.gateway.serving import refusal, serving

COMMIT = "c" * 40


@dataclass
class Gateway:
    stub: Any
    methods: WorkMethods
    requests: WorkerRequests
    recorder: Recorder
    database: Database

    def create(self, **fields: Any) -> Any:
        values = {"training_data": [{"dataset": "ds_1"}]} | fields
        spec = json_format.ParseDict(values, FineTuningJobSpec())
        return self.stub.CreateFineTuningJob(api.CreateFineTuningJobRequest(spec=spec))

    async def created(self, **fields: Any) -> FineTuningJob:
        job: FineTuningJob = (await self.create(**fields)).fine_tuning_job
        return job

    async def get(self, job_id: str) -> FineTuningJob:
        found = await self.stub.GetFineTuningJob(api.GetFineTuningJobRequest(job_id=job_id))
        job: FineTuningJob = found.fine_tuning_job
        return job

    def delete(self, job_id: str) -> Any:
        return self.stub.DeleteFineTuningJob(api.DeleteFineTuningJobRequest(job_id=job_id))

    async def row(self, job_id: str) -> Work:
        async with self.database.read() as session:
            return (await session.exec(select(Work).where(Work.id == job_id))).one()

    async def worker(self) -> Worker:
        """A worker that holds the newest attempt that was offered."""
        worker = Worker(self.requests, f"{len(self.recorder.offered):032x}")
        await worker.claim(self.recorder.offered[-1])
        return worker

    async def preflight(self, method: str = "LORA") -> Worker:
        """Carries out the newest job's preflight; returns a worker with its training."""
        worker = await self.worker()
        resolved = FineTuningJobSpec.FromString((await self.row(worker.assignment.job_id)).merged_spec)
        if not resolved.start_from:
            resolved.method = TrainingMethod.Value(f"TRAINING_METHOD_{method}")
        await worker.report(ConfigResolved(resolved_spec=resolved))
        base = BaseModelIdentity(id=resolved.base_model.partition("@")[0], revision=COMMIT, weights_sha256="f" * 64)
        await worker.report(StageCompleted(preflight=PreflightResult(base_model=base)))
        return await self.worker()

    async def train(self, method: str = "LORA") -> str:
        """Carries out preflight and training, with checkpoints of the steps 10 to 50, the best at 20."""
        worker = await self.preflight(method)
        for step in range(10, 60, 10):
            path = worker.path(f"checkpoints/step-{step}")
            await worker.report(CheckpointSaved(step=step, path=path, manifest_sha256=f"{step:064}", best=step == 20))
        result = TrainingResult(best_step=20, best_checkpoint_path=worker.path("checkpoints/step-20"))
        await worker.report(StageCompleted(training=result))
        return worker.assignment.job_id

    async def trained(self, method: str = "LORA", **fields: Any) -> str:
        await self.created(**({"base_model": "org/base"} | fields))
        return await self.train(method)

    async def finish(self) -> None:
        for _ in range(2):
            await (await self.worker()).complete()


@pytest.fixture
async def gateway(
    database: Database, ledger: Ledger, recorder: Recorder, acceptance: WorkerRequests, tmp_path: Path
) -> AsyncIterator[Gateway]:
    async with database.write() as session:
        session.add(
            UploadedDataset(
                id="ds_1", tenant="default", display_name="rows", filename="rows.jsonl", size_bytes=1, sha256="",
                path="datasets/ds_1/rows.jsonl", create_time=now(),
            )
        )  # fmt: skip
    store = ArtifactStore(f"file://{tmp_path / 'artifacts'}")
    methods = WorkMethods(FINE_TUNING_JOB, ledger, None, store)  # type: ignore[arg-type]
    servicer = FineTuning(methods, Catalogue(tmp_path, {"tiny": tmp_path}), None)  # type: ignore[arg-type]
    async with (
        serving(api, "FineTuningService", add_to_server, servicer) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Gateway(FineTuningServiceStub(channel), methods, acceptance, recorder, database)


async def test_tuned_model_stands_for_its_base_and_its_best_checkpoint(gateway: Gateway) -> None:
    source = await gateway.trained(lora={"r": 8, "target_modules": ["q_proj"]}, recipe="lora-chat")
    job = await gateway.created(base_model=f"ft:{source}")
    assert job.spec.base_model == f"ft:{source}"
    merged = FineTuningJobSpec.FromString((await gateway.row(job.id)).merged_spec)
    assert (merged.base_model, merged.start_from) == (f"org/base@{COMMIT}", f"ft:{source}@20")
    assert (merged.start_mode, merged.method) == (
        StartMode.START_MODE_CONTINUE,
        TrainingMethod.TRAINING_METHOD_LORA,
    )
    assert (merged.lora.r, list(merged.lora.target_modules)) == (8, ["q_proj"])
    assert (
        merged.lora.lora_alpha == FineTuningJobSpec.FromString((await gateway.row(source)).merged_spec).lora.lora_alpha
    )
    worker = await gateway.preflight()
    start = worker.assignment.start
    assert start.checkpoint.path == f"jobs/{source}/training/1/checkpoints/step-20"
    assert (start.checkpoint.manifest_sha256, start.base_weights_sha256) == (f"{20:064}", "f" * 64)
    (own,) = (await gateway.get(job.id)).lineage
    assert (own.start_from, own.manifest_sha256) == (f"ft:{source}@20", f"{20:064}")


async def test_preflight_learns_what_data_the_adapters_below_have_seen(gateway: Gateway) -> None:
    """Otherwise it could not say that rows held out now were trained on earlier."""
    first = await gateway.trained()
    second = await gateway.trained(base_model=f"ft:{first}", holdout_fraction=0.2)
    await gateway.created(base_model=f"ft:{second}")
    worker = await gateway.preflight()
    newest, oldest = worker.assignment.start.trained_data
    config = job_config(spec_to_dict(worker.assignment.merged_spec))
    assert list(newest.datasets) == list(oldest.datasets) == trained_datasets(config)
    assert oldest.split_key != newest.split_key


async def test_another_checkpoint_is_chosen_by_its_step(gateway: Gateway) -> None:
    source = await gateway.trained()
    job = await gateway.created(start_from=f"ft:{source}@50", base_model="org/base")
    assert [each.start_from for each in job.lineage] == [f"ft:{source}@50"]


async def test_lineage_outlives_the_jobs_that_it_names(gateway: Gateway) -> None:
    """It must be possible to say what a model was made of after the disk was cleaned up."""
    first = await gateway.trained(lora={"r": 4, "init_lora_weights": "pissa"})
    await gateway.finish()
    await gateway.created(start_from=f"ft:{first}", start_mode="START_MODE_NEW", lora={"r": 3})
    second = await gateway.train()
    await gateway.finish()
    await gateway.delete(first)
    third = await gateway.created(start_from=f"ft:{second}@40")
    assert [each.start_from for each in third.lineage] == [f"ft:{second}@40", f"ft:{first}@20"]
    assert [each.start_mode for each in third.lineage] == [
        StartMode.START_MODE_CONTINUE,
        StartMode.START_MODE_NEW,
    ]
    merged = FineTuningJobSpec.FromString((await gateway.row(third.id)).merged_spec)
    # PiSSA's adapter has twice its rank.
    assert (merged.lora.r, merged.lora.init_lora_weights) == (8 + 3, "default")
    assert merged.lora.lora_alpha == pytest.approx(32 * 11 / 3)


REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"start_from": "ft:ftjob_none"}, "MODEL_NOT_FOUND", "spec.start_from", "no such fine-tuning job"),
    ({"base_model": "ft:ftjob_none"}, "MODEL_NOT_FOUND", "spec.base_model", "no such fine-tuning job"),
    ({"start_from": "ft:{job}@30"}, "CHECKPOINT_NOT_FOUND", "spec.start_from", "was deleted when newer ones"),
    ({"start_from": "ft:{job}@55"}, "CHECKPOINT_NOT_FOUND", "spec.start_from", "Name one of its steps: 20, 40, 50"),
    ({"start_from": "ft:{job}@best"}, "INVALID_START", "spec.start_from", "ft:<job_id>@<step>"),
    ({"start_from": "/srv/adapter"}, "INVALID_START", "spec.start_from", "nor the id of an uploaded adapter"),
    ({"start_from": "ft:a\0"}, "NUL_CHARACTER", "spec.start_from", "NUL"),
    ({"start_from": "ft:{job}", "base_model": "org/other"}, "INVALID_START", "spec.base_model", "not to 'org/other'"),
    ({"start_from": "ft:{job}", "base_model": "ft:x"}, "INVALID_START", "spec.start_from", "Remove one of the two"),
    ({"start_from": "ft:{job}", "lora": {"r": 7}}, "INVALID_CONFIG", "spec.lora.r", "start_mode to new"),
    # Also the value that the recipe would set.
    ({"start_from": "ft:{job}", "lora": {"r": 16}}, "INVALID_CONFIG", "spec.lora.r", "has 8. Remove it"),
    (
        {"start_from": "ft:{job}", "lora": {"target_modules_pattern": ".*q_proj"}},
        "INVALID_CONFIG", "spec.lora.target_modules_pattern", "has none",
    ),
    (
        {"start_from": "ft:{job}", "start_mode": "START_MODE_NEW", "lora": {"target_modules": ["q_proj"]}},
        "INVALID_CONFIG", "spec.lora.target_modules", 'has ["v_proj"]. Remove it.',
    ),
    (
        {"start_from": "ft:{job}", "lora": {"use_dora": True}},
        "INVALID_CONFIG", "spec.lora.use_dora", "true given, but the adapter ft:{job}@20 has false. Remove it.",
    ),
    (
        {"start_from": "ft:{job}", "start_mode": "START_MODE_NEW", "lora": {"use_dora": True}},
        "INVALID_CONFIG", "spec.lora.use_dora", "joins two plain adapters",
    ),
    ({"start_from": "ft:{job}", "method": "TRAINING_METHOD_FULL"}, "INVALID_CONFIG", "spec.method", "names an adapter"),
    ({"base_model": "tiny", "start_mode": "START_MODE_NEW"}, "INVALID_CONFIG", "spec.start_mode", "needs start_from"),
]  # fmt: skip


async def test_what_no_training_can_start_from_is_refused_at_creation(gateway: Gateway) -> None:
    """Hours later, in the training, the same mistake would cost the time in the queue."""
    source = await gateway.trained(
        recipe="lora-chat", hyperparameters={"save_total_limit": 3}, lora={"r": 8, "target_modules": ["v_proj"]}
    )
    for fields, reason, field, words in REFUSED:
        asked = {name: value.format(job=source) if isinstance(value, str) else value for name, value in fields.items()}
        refused = await refusal(gateway.create(**asked))
        assert (refused.reason, refused.fields[:1]) == (reason, (field,)), refused
        assert words.format(job=source) in refused.message, refused


async def test_method_of_the_source_decides_how_it_is_trained_further(gateway: Gateway) -> None:
    full = await gateway.trained("FULL")
    refused = await refusal(gateway.create(base_model=f"ft:{full}"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")
    assert "trained all weights" in refused.message
    loftq = await gateway.trained("QLORA", lora={"init_lora_weights": "loftq"})
    job = await gateway.created(base_model=f"ft:{loftq}")
    merged = FineTuningJobSpec.FromString((await gateway.row(job.id)).merged_spec)
    assert (merged.method, merged.lora.init_lora_weights) == (TrainingMethod.TRAINING_METHOD_QLORA, "loftq")
    await gateway.stub.CancelFineTuningJob(api.CancelFineTuningJobRequest(job_id=job.id))
    for fields in ({"start_mode": "START_MODE_NEW"}, {"method": "TRAINING_METHOD_LORA"}):
        refused = await refusal(gateway.create(base_model=f"ft:{loftq}", **fields))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CONFIG")


async def test_job_that_still_trains_has_no_adapter(gateway: Gateway) -> None:
    source = await gateway.created(base_model="tiny")
    refused = await refusal(gateway.create(base_model=f"ft:{source.id}"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_TRAINED")


async def test_job_of_another_tenant_is_as_unknown_as_none(gateway: Gateway) -> None:
    """The answer must not even tell that it exists."""
    source = await gateway.trained()
    async with gateway.database.write() as session:
        row = await session.get_one(Work, source)
        row.tenant = "acme"
        session.add(row)
    refused = await refusal(gateway.create(base_model=f"ft:{source}"))
    unknown = await refusal(gateway.create(base_model="ft:ftjob_none"))
    assert refused.message.replace(source, "ftjob_none") == unknown.message
    assert (refused.code, refused.reason) == (unknown.code, unknown.reason)


async def test_source_is_kept_until_the_training_has_ended(gateway: Gateway) -> None:
    """A retry reads its checkpoint again."""
    source = await gateway.trained()
    await gateway.finish()
    job = await gateway.created(base_model=f"ft:{source}")
    refused = await refusal(gateway.delete(source))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_IN_USE")
    assert (refused.metadata["job_id"], job.id in refused.message) == (job.id, True)
    await gateway.train()
    await gateway.delete(source)
    assert [each.start_from for each in (await gateway.get(job.id)).lineage] == [f"ft:{source}@20"]


async def test_source_of_a_cancelled_training_can_be_deleted(gateway: Gateway) -> None:
    source = await gateway.trained()
    await gateway.finish()
    job = await gateway.created(base_model=f"ft:{source}")
    await gateway.stub.CancelFineTuningJob(api.CancelFineTuningJobRequest(job_id=job.id))
    await gateway.delete(source)


async def test_of_deletion_and_creation_at_once_one_wins(gateway: Gateway) -> None:
    """Otherwise a training would find its start deleted."""
    for _ in range(10):
        source = await gateway.trained()
        await gateway.finish()

        async def delete(job_id: str = source) -> None:
            with contextlib.suppress(grpc.aio.AioRpcError, ServiceError):
                await gateway.delete(job_id)

        async def create(job_id: str = source) -> str:
            try:
                return (await gateway.created(base_model=f"ft:{job_id}")).id
            except grpc.aio.AioRpcError:
                return ""

        _, created = await asyncio.gather(delete(), create())
        async with gateway.database.read() as session:
            left = (await session.exec(select(Work.id).where(Work.id == source))).one_or_none()
        assert bool(created) == (left is not None)
        if created:
            await gateway.stub.CancelFineTuningJob(api.CancelFineTuningJobRequest(job_id=created))


async def test_nothing_starts_from_a_job_that_is_being_deleted(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion of a long history takes seconds; refused at its end, it would leave a job without events."""
    source = await gateway.trained()
    await gateway.finish()
    refused = []
    delete_history = gateway.methods._delete_history

    async def create_meanwhile(ids: Sequence[str]) -> None:
        refused.append(await refusal(gateway.create(base_model=f"ft:{source}")))
        await delete_history(ids)

    monkeypatch.setattr(gateway.methods, "_delete_history", create_meanwhile)
    await gateway.delete(source)
    assert [(each.code, each.reason) for each in refused] == [(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")]


async def add_adapter(gateway: Gateway) -> None:
    async with gateway.database.write() as session:
        session.add(
            UploadedDataset(
                id="ds_2", tenant="default", display_name="adapter", filename="mine.safetensors", size_bytes=1,
                sha256="e" * 64, path="datasets/ds_2/mine.safetensors", create_time=now(),
            )
        )  # fmt: skip


async def test_uploaded_adapter_travels_to_preflight_and_training(gateway: Gateway) -> None:
    await add_adapter(gateway)
    job = await gateway.created(base_model="tiny", start_from="ds_2")
    assert [(each.start_from, each.manifest_sha256) for each in job.lineage] == [("ds_2", "e" * 64)]
    worker = await gateway.worker()
    assert {dataset.id for dataset in worker.assignment.datasets} == {"ds_1", "ds_2"}
    assert worker.assignment.start.dataset.path == "datasets/ds_2/mine.safetensors"
    async with gateway.database.read() as session:
        row = await session.get_one(UploadedDataset, "ds_2")
        with pytest.raises(FailedPrecondition, match=f"is used by job {job.id}"):
            await refuse_if_used(session, row)


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"start_from": "ds_1"}, "NOT_AN_ADAPTER", "spec.start_from"),
        ({"start_from": "ds_9"}, "DATASET_NOT_FOUND", "spec.start_from"),
        ({"training_data": [{"dataset": "ds_2"}]}, "ADAPTER_AS_DATA", "spec.training_data[0].dataset"),
        ({"start_from": "ds_2", "start_mode": "START_MODE_NEW"}, "NOT_IMPLEMENTED", "spec.start_mode"),
        ({"start_from": "ds_2", "base_model": ""}, "INVALID_CONFIG", "spec.base_model"),
    ],
)
async def test_adapter_and_rows_are_not_taken_for_each_other(
    gateway: Gateway, fields: dict[str, Any], reason: str, field: str
) -> None:
    await add_adapter(gateway)
    refused = await refusal(gateway.create(**({"base_model": "tiny"} | fields)))
    assert (refused.reason, refused.fields[:1]) == (reason, (field,)), refused
