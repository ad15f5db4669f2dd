"""Evaluations and exports over a real channel: those of a job's stages and those created separately."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlmodel import select

from chassis.bus.event_bus import Bus
from chassis.store.artifact_store import ArtifactStore
from engine.catalogue import Catalogue
from engine.config.job import job_config
from engine.config.spec_proto import config_to_spec, spec_to_dict
from finetuneflow.v1 import evaluation_service_pb2 as evaluation_api
from finetuneflow.v1 import export_service_pb2 as export_api
from finetuneflow.v1 import fine_tuning_service_pb2 as job_api
from finetuneflow.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from finetuneflow.v1.event_pb2 import ArtifactSaved, CheckpointSaved, ConfigResolved, Phase, StageCompleted
from finetuneflow.v1.export_service_pb2_grpc import ExportServiceStub
from finetuneflow.v1.fine_tuning_job_pb2 import JobState
from finetuneflow.v1.fine_tuning_job_spec_pb2 import (
    DataSource,
    EvaluationSpec,
    ExportFormat,
    ExportSpec,
    FineTuningJobSpec,
    HubPush,
    LoraSpec,
)
from finetuneflow.v1.fine_tuning_service_pb2_grpc import FineTuningServiceStub
from finetuneflow.v1.stage_result_pb2 import EvaluationResult, GateDecision, TrainingResult
from finetuneflow.v1.work_pb2 import Node
from gateway.observed_speeds import ObservedSpeeds
from gateway.passthrough import Passthrough
from gateway.servicers import fine_tuning, results
from gateway.servicers.work import WorkMethods
from gateway.specs import secrets_of
from gateway.sql.database import Database
from gateway.sql.tables import Attempt, SavedArtifact, SavedResult, SecretRow, UploadedDataset, Work, WorkEvent
from gateway.watch.fanout import Fanout
from gateway.work.kinds import EVALUATION, EXPORT, FINE_TUNING_JOB
from gateway.work.ledger import Ledger
from gateway.work.worker_requests import WorkerRequests
from tests.fakes.planning import NoTrainers
from tests.gateway.conftest import Recorder
from tests.gateway.jobs import Worker, create
from tests.gateway.serving import refusal, serving
from tests.servers.nats import NatsServer

ADAPTER, MERGED = ExportFormat.EXPORT_FORMAT_ADAPTER, ExportFormat.EXPORT_FORMAT_MERGED
GGUF, GGUF_ADAPTER = ExportFormat.EXPORT_FORMAT_GGUF, ExportFormat.EXPORT_FORMAT_GGUF_ADAPTER


@dataclass
class ResultServers:
    evaluations: Any
    exports: Any
    jobs: Any
    ledger: Ledger
    requests: WorkerRequests
    recorder: Recorder
    store: ArtifactStore
    bus: Bus

    async def job(self, *, stages: int = 4, **spec: Any) -> str:
        """A job that has completed so many of its stages."""
        spec = {"base_model": "tiny", "training_data": [DataSource(dataset="ds_1")], **spec}
        asked = FineTuningJobSpec(**spec)
        resolved = config_to_spec(job_config(spec_to_dict(asked)))
        job_id = await create(self.ledger, spec=asked.SerializeToString())
        for number in range(stages):
            worker = await self.worker()
            if not number:
                await worker.report(ConfigResolved(resolved_spec=resolved))
            await worker.complete()
        return job_id

    async def worker(self) -> Worker:
        """A worker that holds the newest attempt that was offered."""
        attempt = self.recorder.offered[-1]
        worker = Worker(self.requests, f"{len(self.recorder.offered):032x}")
        answer = await worker.claim(attempt)
        assert answer.HasField("assignment"), answer
        return worker


@pytest.fixture
async def servers(database: Database, nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[ResultServers]:
    recorder = Recorder()
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "test", echo=False)
    await bus.ensure_streams()
    fanout = Fanout(database, bus)
    await fanout.start()
    ledger = Ledger(database, fanout.publish, recorder.offer, recorder.discard)
    store = ArtifactStore(f"file://{tmp_path / 'artifacts'}")
    catalogue = Catalogue(tmp_path)
    methods = WorkMethods(EVALUATION, ledger, fanout, store)
    evaluations = results.Evaluations(methods, catalogue, store, Passthrough(bus).nodes)
    exports = results.Exports(WorkMethods(EXPORT, ledger, fanout, store), catalogue, Passthrough(bus).nodes)
    jobs = fine_tuning.FineTuning(WorkMethods(FINE_TUNING_JOB, ledger, fanout, store), None, None)  # type: ignore[arg-type]
    async with (
        serving(evaluation_api, "EvaluationService", results.add_evaluations_to_server, evaluations) as first,
        serving(export_api, "ExportService", results.add_exports_to_server, exports) as second,
        serving(job_api, "FineTuningService", fine_tuning.add_to_server, jobs) as third,
        grpc.aio.insecure_channel(first) as to_evaluations,
        grpc.aio.insecure_channel(second) as to_exports,
        grpc.aio.insecure_channel(third) as to_jobs,
    ):
        yield ResultServers(
            EvaluationServiceStub(to_evaluations),
            ExportServiceStub(to_exports),
            FineTuningServiceStub(to_jobs),
            ledger,
            WorkerRequests(ledger, NoTrainers()),
            recorder,
            store,
            bus,
        )
    await bus.close()


def evaluate(servers: ResultServers, job_id: str, request_id: str = "", **spec: Any) -> Any:
    request = evaluation_api.CreateEvaluationRequest(
        model=f"ft:{job_id}", spec=EvaluationSpec(**spec), request_id=request_id
    )
    return servers.evaluations.CreateEvaluation(request)


def export(servers: ResultServers, job_id: str, request_id: str = "", **spec: Any) -> Any:
    request = export_api.CreateExportRequest(model=f"ft:{job_id}", spec=ExportSpec(**spec), request_id=request_id)
    return servers.exports.CreateExport(request)


async def test_export_takes_the_settings_of_the_forms_that_it_makes(servers: ResultServers) -> None:
    """A caller who asks for the adapter alone must not be refused for what the job says about another form."""
    job_id = await servers.job(
        method="TRAINING_METHOD_QLORA",
        export=ExportSpec(formats=[MERGED], dtype="bfloat16", merge_base="original"),
    )
    for given, formats, dtype, merge_base in (
        ({}, [MERGED], "bfloat16", "original"),
        ({"formats": [ADAPTER]}, [ADAPTER], "", "trained"),
        ({"formats": [ADAPTER, MERGED], "dtype": ""}, [ADAPTER, MERGED], "", "original"),
        ({"merge_base": "trained", "dtype": "float16"}, [MERGED], "float16", "trained"),
    ):
        made = (await export(servers, job_id, **given)).export.spec
        assert (list(made.formats), made.dtype, made.merge_base) == (formats, dtype, merge_base)
    refused = await refusal(export(servers, job_id, formats=[ADAPTER], merge_base="original"))
    assert (refused.reason, refused.fields) == ("INVALID_CONFIG", ("spec.merge_base",))


async def test_original_weights_are_refused_for_an_adapter_of_loftq(servers: ResultServers) -> None:
    """Such an adapter contains what the quantization has lost: merged there, it would be added twice."""
    job_id = await servers.job(method="TRAINING_METHOD_QLORA", lora={"init_lora_weights": "loftq"})
    refused = await refusal(export(servers, job_id, formats=[MERGED], merge_base="original"))
    assert (refused.reason, refused.fields) == ("INVALID_CONFIG", ("spec.merge_base",))
    assert "loftq" in refused.message
    await export(servers, job_id, formats=[MERGED])


async def test_stages_of_job_create_same_resources_as_separate_requests(servers: ResultServers) -> None:
    """A client that lists evaluations need not know where each came from."""
    job_id = await servers.job(evaluation=EvaluationSpec(num_samples=3, enabled=True))
    job = (await servers.jobs.GetFineTuningJob(job_api.GetFineTuningJobRequest(job_id=job_id))).fine_tuning_job
    found = await servers.evaluations.GetEvaluation(
        evaluation_api.GetEvaluationRequest(evaluation_id=job.evaluation_id)
    )
    left = found.evaluation
    await evaluate(servers, job_id, num_samples=7)
    await (await servers.worker()).complete()
    (alone, listed) = (
        await servers.evaluations.ListEvaluations(evaluation_api.ListEvaluationsRequest(job_id=job_id))
    ).evaluations
    assert listed == left
    for each, samples in ((left, 3), (alone, 7)):
        assert (each.job_id, each.model, each.state) == (job_id, f"ft:{job_id}", JobState.JOB_STATE_SUCCEEDED)
        assert (each.result.base_loss, each.result.tuned_loss, each.spec.num_samples) == (4.0, 3.0, samples)
        assert each.HasField("end_time")
    packed = (await servers.exports.GetExport(export_api.GetExportRequest(export_id=job.export_id))).export
    assert (packed.job_id, list(packed.formats), packed.result.package_path) == (
        job_id,
        [ADAPTER],
        f"jobs/{job_id}/export/1/x.zip",
    )
    assert job.tuned_model == packed.model


async def test_shown_regression_is_part_of_the_job(servers: ResultServers) -> None:
    """A job that lists PROMOTE alone hides what its model has lost."""
    job_id = await servers.job(stages=2)
    worker = await servers.worker()
    result = EvaluationResult(
        gate={"decision": GateDecision.GATE_DECISION_PROMOTE}, shown_regression="Its loss is 2, that of tiny 1."
    )
    await worker.report(StageCompleted(evaluation=result))
    job = (await servers.jobs.GetFineTuningJob(job_api.GetFineTuningJobRequest(job_id=job_id))).fine_tuning_job
    assert (job.gate_decision, job.shown_regression) == (GateDecision.GATE_DECISION_PROMOTE, result.shown_regression)
    (listed,) = (await servers.jobs.ListFineTuningJobs(job_api.ListFineTuningJobsRequest())).fine_tuning_jobs
    assert listed.shown_regression == job.shown_regression and listed.evaluation_id == job.evaluation_id


async def test_separate_evaluation_runs_the_tasks_of_the_harness_that_it_names(servers: ResultServers) -> None:
    """A benchmark takes hours: it is not repeated because the job's own evaluation has run it."""
    job_id = await servers.job(evaluation=EvaluationSpec(harness_tasks=["sums"], harness_limit=9))
    unknown = await refusal(evaluate(servers, job_id, harness_tasks=["sums"]))
    await evaluate(servers, job_id)
    without = (await servers.worker()).assignment.resolved_spec.evaluation
    await servers.bus.put_node(Node(id="evaluator-1", service="evaluator", harness_tasks=["sums", "words"]))
    await evaluate(servers, job_id, request_id="once", harness_tasks=["words"])
    asked = (await servers.worker()).assignment.resolved_spec.evaluation
    await servers.bus.remove_node("evaluator", "evaluator-1")
    again = await evaluate(servers, job_id, request_id="once", harness_tasks=["words"])

    assert (unknown.reason, unknown.fields) == ("UNKNOWN_HARNESS_TASK", ("spec.harness_tasks[0]",))
    assert not without.harness_tasks and not without.HasField("harness_limit")
    assert list(asked.harness_tasks) == ["words"] and not asked.HasField("harness_limit")
    assert list(again.evaluation.spec.harness_tasks) == ["words"], "a repeated call gets what the first one made"


async def test_separate_export_makes_the_types_of_a_running_exporter(servers: ResultServers) -> None:
    """The types may be the job's own, of a time when there was such an exporter."""
    own = {"formats": [GGUF], "gguf_types": ["q4_k_m"]}
    job_id = await servers.job(export=ExportSpec(**own))
    refused = await refusal(export(servers, job_id))
    await servers.bus.put_node(Node(id="exporter-1", service="exporter", gguf_types=["q4_k_m"]))
    await export(servers, job_id)

    assert (refused.reason, refused.fields) == ("GGUF_TYPE_UNAVAILABLE", ("spec.gguf_types[0]",))
    assert list((await servers.worker()).assignment.resolved_spec.export.gguf_types) == ["q4_k_m"]


async def test_adapter_in_gguf_does_not_take_types_of_whole_models_from_the_job(servers: ResultServers) -> None:
    """No adapter has k-quants, and who exports one more form should not have to know which types the job had."""
    await servers.bus.put_node(Node(id="exporter-1", service="exporter", gguf_types=["q4_k_m"]))
    job_id = await servers.job(export=ExportSpec(formats=[GGUF], gguf_types=["q4_k_m"]))
    await export(servers, job_id, formats=[GGUF_ADAPTER])
    asked = (await servers.worker()).assignment.resolved_spec.export
    refused = await refusal(export(servers, job_id, formats=[GGUF_ADAPTER], gguf_types=["q4_k_m"]))
    dora = await servers.job(lora=LoraSpec(use_dora=True))
    lost = await refusal(export(servers, dora, formats=[GGUF_ADAPTER]))

    assert (list(asked.formats), list(asked.gguf_types)) == ([GGUF_ADAPTER], [])
    assert (refused.reason, refused.fields) == ("INVALID_CONFIG", ("spec.gguf_types",))
    assert (lost.reason, lost.fields) == ("INVALID_CONFIG", ("spec.formats",))


@pytest.mark.parametrize("form", [GGUF, GGUF_ADAPTER])
async def test_inl_models_are_refused_as_gguf(servers: ResultServers, form: int) -> None:
    """The export would run, and fail in the end."""
    job_id = await servers.job(base_model="inl-small,tokenizer=org/name@main,seed=7")
    refused = await refusal(export(servers, job_id, formats=[MERGED, form]))
    assert (refused.reason, refused.fields) == ("INVALID_CONFIG", ("spec.formats",))
    assert "llama.cpp has no INL models; use merged" in refused.message
    await export(servers, job_id, formats=[MERGED])


async def test_separate_export_has_state_events_and_retries_like_a_job(servers: ResultServers) -> None:
    """State, progress, attempts, events, watch and retries of a finished model's export."""
    job_id = await servers.job()
    made = (await export(servers, job_id, formats=[ADAPTER])).export
    assert (made.state, made.attempt, made.max_attempts) == (JobState.JOB_STATE_QUEUED, 1, 3)
    assert made.waiting.startswith("No exporter of pool 'default' is running")
    watching = servers.exports.WatchExport(export_api.WatchExportRequest(export_id=made.id))
    worker = await servers.worker()
    assert worker.assignment.fine_tuning_job_id == job_id
    assert worker.assignment.training.total_steps == 48
    assert worker.assignment.evaluation.tuned_loss == 3.0
    await worker.report(Phase(name="packing", index=3, count=5, fraction=0.5))
    running = (await servers.exports.GetExport(export_api.GetExportRequest(export_id=made.id))).export
    assert not running.waiting
    progress = running.progress
    assert (progress.phase, progress.phase_index, progress.phase_count, progress.phase_fraction) == (
        "packing",
        3,
        5,
        0.5,
    )
    await worker.fail("KILLED")
    worker = await servers.worker()
    path = f"jobs/{made.id}/export/2/report.md"
    await worker.report(ArtifactSaved(path=path, kind="export_file"))
    await worker.complete()
    done = (await servers.exports.GetExport(export_api.GetExportRequest(export_id=made.id))).export
    assert (done.state, done.failed_attempts) == (JobState.JOB_STATE_SUCCEEDED, 1)
    assert [(each.attempt, each.outcome) for each in done.attempts] == [(1, "FAILED"), (2, "COMPLETED")]
    assert done.result.package_path == f"jobs/{made.id}/export/2/x.zip"
    events = [event async for answer in watching for event in answer.events]
    assert [event.sequence for event in events] == list(range(1, done.last_sequence + 1))
    assert {event.job_id for event in events} == {made.id}
    page = await servers.exports.ListExportEvents(export_api.ListExportEventsRequest(export_id=made.id))
    assert list(page.events) == events


async def test_the_same_request_id_makes_one_evaluation(servers: ResultServers) -> None:
    """A client that repeats a call after a lost response must not pay twice; a job may have the same request_id."""
    job_id = await servers.job(stages=2)
    first, again = await asyncio.gather(*(evaluate(servers, job_id, "order-7", num_samples=2) for _ in range(2)))
    assert first.evaluation.id == again.evaluation.id
    exported = (await export(servers, job_id, "order-7")).export
    assert exported.id.startswith("ex_")
    refused = await refusal(evaluate(servers, job_id, "order-7", num_samples=3))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_cancelled_export_stops_and_deleted_export_leaves_no_rows_or_files(servers: ResultServers) -> None:
    job_id = await servers.job()
    waiting, running = [(await export(servers, job_id)).export for _ in range(2)]
    worker = await servers.worker()
    artifact = f"jobs/{running.id}/export/1/report.md"
    await worker.report(ArtifactSaved(path=artifact, kind="export_file"))
    with servers.store.begin_write(f"default/{artifact}") as writer:
        writer.write(b"report")
        writer.commit()
    requests = [export_api.CancelExportRequest(export_id=each.id) for each in (waiting, running)]
    cancelled = [(await servers.exports.CancelExport(request)).export.state for request in requests]
    assert cancelled == [JobState.JOB_STATE_CANCELLED, JobState.JOB_STATE_CANCELLING]
    refused = await refusal(servers.exports.DeleteExport(export_api.DeleteExportRequest(export_id=running.id)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_ENDED")
    await worker.fail()
    for each in (waiting, running):
        await servers.exports.DeleteExport(export_api.DeleteExportRequest(export_id=each.id))
        gone = await refusal(servers.exports.GetExport(export_api.GetExportRequest(export_id=each.id)))
        assert (gone.code, gone.reason) == (grpc.StatusCode.NOT_FOUND, "EXPORT_NOT_FOUND")
    assert not servers.store.exists(f"default/{artifact}")
    async with servers.ledger.database.read() as session:
        for table in (Attempt, WorkEvent, SavedArtifact):
            rows = (await session.exec(select(table.work_id).where(table.work_id.startswith("ex_")))).all()  # type: ignore[attr-defined]
            assert not rows, table


async def test_deleting_job_deletes_evaluations_and_exports_of_its_model(servers: ResultServers) -> None:
    """Otherwise rows of a user's data would remain in evaluations of a deleted job."""
    job_id = await servers.job()
    made = (await evaluate(servers, job_id)).evaluation
    delete = job_api.DeleteFineTuningJobRequest(job_id=job_id)
    refused = await refusal(servers.jobs.DeleteFineTuningJob(delete))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_ENDED")
    assert made.id in refused.message
    await (await servers.worker()).complete()
    await servers.jobs.DeleteFineTuningJob(delete)
    async with servers.ledger.database.read() as session:
        for table in (Work, SavedResult):
            assert not (await session.exec(select(table.id))).all(), table


async def test_job_of_a_judge_is_kept_until_the_evaluation_has_ended(servers: ResultServers) -> None:
    """Otherwise an evaluation of hours would fail at its end, when the judge is asked."""
    judge, judged = await servers.job(), await servers.job(stages=2)
    asks = {"type": "score_model", "name": "good", "model": f"ft:{judge}"}
    asks["input"] = [{"role": "user", "content": "{{sample.output_text}}"}]  # type: ignore[assignment]
    spec = EvaluationSpec()
    spec.graders.add().update({"type": "multi", "name": "m", "graders": {"good": asks}, "calculate_output": "good"})
    made = (await evaluate(servers, judged, graders=spec.graders)).evaluation
    delete = job_api.DeleteFineTuningJobRequest(job_id=judge)
    refused = await refusal(servers.jobs.DeleteFineTuningJob(delete))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_IN_USE")
    assert made.id in refused.message and "graded" in refused.message
    worker = await servers.worker()
    assert [each.id for each in worker.assignment.judges] == [f"ft:{judge}"]
    await worker.complete()
    await servers.jobs.DeleteFineTuningJob(delete)
    refused = await refusal(evaluate(servers, judged, graders=spec.graders))
    assert (refused.reason, refused.fields) == ("MODEL_NOT_FOUND", ("spec.graders[0].model",))


async def test_lists_of_the_job_can_be_removed_for_one_evaluation(servers: ResultServers) -> None:
    """An empty list is not sent, so without this the job's graders and gate would apply for ever."""
    own = EvaluationSpec(metrics=["exact_match"], prompts=["Is 7 odd?"], gate=[{"metric": "chrf", "min_value": 0.5}])
    job_id = await servers.job(stages=2, evaluation=own)
    request = evaluation_api.CreateEvaluationRequest(
        model=f"ft:{job_id}", clear_fields=["gate", "metrics"], request_id="one"
    )
    made = (await servers.evaluations.CreateEvaluation(request)).evaluation
    assert (list(made.spec.gate), list(made.spec.metrics), list(made.spec.prompts)) == ([], [], ["Is 7 odd?"])
    kept = (await evaluate(servers, job_id, metrics=["bleu"])).evaluation
    assert (list(kept.spec.metrics), len(kept.spec.gate)) == (["bleu"], 1)
    repeated = evaluation_api.CreateEvaluationRequest(model=f"ft:{job_id}", request_id="one")
    assert (await refusal(servers.evaluations.CreateEvaluation(repeated))).reason == "REQUEST_ID_REUSED"
    wrong = evaluation_api.CreateEvaluationRequest(
        model=f"ft:{job_id}", clear_fields=["gate", "max_rows"], spec=EvaluationSpec(gate=own.gate)
    )
    refused = await refusal(servers.evaluations.CreateEvaluation(wrong))
    assert (refused.reason, refused.fields) == ("INVALID_CONFIG", ("clear_fields[0]", "clear_fields[1]"))


async def test_rows_of_the_hub_are_read_with_the_token_of_the_job(servers: ResultServers) -> None:
    """Training data may be on the hub; it had to be downloaded and uploaded to be evaluated."""
    job_id = await servers.job(stages=2)
    source = DataSource(dataset="hf://org/rows")
    made = (
        await servers.evaluations.CreateEvaluation(
            evaluation_api.CreateEvaluationRequest(model=f"ft:{job_id}", data=[source])
        )
    ).evaluation
    assert [each.dataset for each in made.data] == ["hf://org/rows"]
    assignment = (await servers.worker()).assignment
    assert secrets_of(assignment) == set()
    assignment.merged_spec.secrets["hub_token"] = "hub"
    assert secrets_of(assignment) == {"hub"}
    assignment.comparison.data[0].dataset = "ds_1"
    assert secrets_of(assignment) == set(), "nothing of a hub is read"


async def test_push_of_an_export_needs_a_secret_that_exists(servers: ResultServers) -> None:
    """A missing token would otherwise be found after hours, and a job's own push must not be repeated by itself."""
    job_id = await servers.job(
        stages=2, export=ExportSpec(hub=HubPush(repo_id="org/own")), secrets={"hub_write_token": "writer"}
    )
    request = export_api.CreateExportRequest
    create = servers.exports.CreateExport
    assert not (await create(request(model=f"ft:{job_id}"))).export.spec.HasField("hub")
    pushed = request(model=f"ft:{job_id}", spec=ExportSpec(hub=HubPush(repo_id="org/x")))
    refused = await refusal(create(pushed))
    assert (refused.reason, refused.fields) == ("SECRET_NOT_FOUND", ("secrets.hub_write_token",))
    async with servers.ledger.database.write() as session:
        for name in ("writer", "other"):
            session.add(SecretRow(tenant="default", name=name, ciphertext=b"", create_time=1, update_time=1))
    made = (await create(pushed)).export
    assert (made.spec.hub.repo_id, made.spec.hub.private, made.spec.hub.revision) == ("org/x", True, "main")
    assert secrets_of((await servers.worker()).assignment) == {"writer"}
    pushed.secrets["hub_write_token"] = "other"
    await create(pushed)
    assert secrets_of((await servers.worker()).assignment) == {"other"}
    for wrong, spec in (({"hub_token": "other"}, pushed.spec), ({"hub_write_token": "other"}, None)):
        refused = await refusal(create(request(model=f"ft:{job_id}", spec=spec, secrets=wrong)))
        assert (refused.reason, refused.fields) == ("INVALID_CONFIG", tuple(f"secrets.{use}" for use in wrong))


async def test_another_checkpoint_is_exported_by_its_step(servers: ResultServers) -> None:
    """Which step is the best one to serve, the loss alone does not say."""
    job_id = await servers.job(stages=1)
    worker = await servers.worker()
    for step in (10, 20):
        path = worker.path(f"checkpoints/step-{step}")
        await worker.report(CheckpointSaved(step=step, path=path, manifest_sha256=f"{step:064}", best=step == 20))
    best = TrainingResult(best_step=20, best_checkpoint_path=worker.path("checkpoints/step-20"))
    await worker.report(StageCompleted(training=best))
    made = (await export(servers, f"{job_id}@10")).export
    assert (made.model, made.job_id) == (f"ft:{job_id}@10", job_id)
    given = (await servers.worker()).assignment
    assert given.comparison.model.checkpoint.path == f"jobs/{job_id}/training/1/checkpoints/step-10"


async def test_files_that_hold_no_rows_or_questions_are_refused_at_once(servers: ResultServers) -> None:
    """An evaluation that cannot work should not wait for an evaluator first."""
    job_id = await servers.job(stages=2)
    async with servers.ledger.database.write() as session:
        for id, filename in (
            ("ds_adapter", "adapter.safetensors"),
            ("ds_table", "questions.csv"),
            ("ds_ok", "q.jsonl"),
        ):
            about = {"display_name": "", "size_bytes": 1, "sha256": "0" * 64, "path": f"datasets/{id}/{filename}"}
            session.add(UploadedDataset(id=id, tenant="default", filename=filename, create_time=1, **about))
    request = evaluation_api.CreateEvaluationRequest
    for asked, reason, field in (
        (request(data=[DataSource(dataset="ds_adapter")]), "ADAPTER_AS_DATA", "data[0].dataset"),
        (request(spec=EvaluationSpec(regression="ds_adapter")), "ADAPTER_AS_DATA", "spec.regression"),
        (request(spec=EvaluationSpec(questions="ds_table")), "BAD_QUESTIONS", "spec.questions"),
    ):
        asked.model = f"ft:{job_id}"
        refused = await refusal(servers.evaluations.CreateEvaluation(asked))
        assert (refused.code.name, refused.reason, refused.fields) == ("INVALID_ARGUMENT", reason, (field,))
    assert (await evaluate(servers, job_id, questions="ds_ok")).evaluation.spec.questions == "ds_ok"


async def test_judge_and_questions_of_the_job_itself_are_looked_up(servers: ResultServers) -> None:
    """What the job names may have been deleted since; its questions would silently not be asked."""
    asks = {"type": "score_model", "name": "good", "model": "ft:ftjob_gone"}
    asks["input"] = [{"role": "user", "content": "{{sample.output_text}}"}]  # type: ignore[assignment]
    spec = EvaluationSpec()
    spec.graders.add().update(asks)
    refused = await refusal(evaluate(servers, await servers.job(stages=2, evaluation=spec)))
    assert (refused.reason, refused.fields) == ("MODEL_NOT_FOUND", ("spec.graders[0].model",))
    asked = await servers.job(stages=2, evaluation=EvaluationSpec(questions="ds_gone"))
    refused = await refusal(evaluate(servers, asked))
    assert (refused.reason, refused.fields) == ("DATASET_NOT_FOUND", ("spec.questions",))


async def test_results_of_job_stages_cannot_be_cancelled_or_deleted_alone(servers: ResultServers) -> None:
    """A watch would wait for ever, and a deletion would leave the job with a dangling reference."""
    job_id = await servers.job()
    job = (await servers.jobs.GetFineTuningJob(job_api.GetFineTuningJobRequest(job_id=job_id))).fine_tuning_job
    stub, id = servers.exports, job.export_id
    for call in (
        stub.CancelExport(export_api.CancelExportRequest(export_id=id)),
        stub.DeleteExport(export_api.DeleteExportRequest(export_id=id)),
        stub.ListExportEvents(export_api.ListExportEventsRequest(export_id=id)),
        anext(aiter(stub.WatchExport(export_api.WatchExportRequest(export_id=id)))),
    ):
        refused = await refusal(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BELONGS_TO_JOB")
        assert job_id in refused.message


async def test_invalid_requests_are_refused_with_field(servers: ResultServers) -> None:
    trained = await servers.job(stages=2)
    untrained = await servers.job(stages=1)
    request = evaluation_api.CreateEvaluationRequest
    create = servers.evaluations.CreateEvaluation
    tuned, alias = f"ft:{trained}", "smollm2-135m"
    hub, weighted = DataSource(dataset="hf://rows"), DataSource(dataset="ds_1", weight=2)
    for call, code, reason, fields in (
        (
            export(servers, trained, formats=[GGUF], gguf_types=["q4_k_m"]),
            "INVALID_ARGUMENT",
            "GGUF_TYPE_UNAVAILABLE",
            ("spec.gguf_types[0]",),
        ),
        (export(servers, trained, gguf_types=["f16"]), "INVALID_ARGUMENT", "INVALID_CONFIG", ("spec.gguf_types",)),
        (export(servers, trained, dtype="bfloat16"), "INVALID_ARGUMENT", "INVALID_CONFIG", ("spec.dtype",)),
        (export(servers, trained, merge_base="original"), "INVALID_ARGUMENT", "INVALID_CONFIG", ("spec.merge_base",)),
        (
            export(servers, trained, formats=[MERGED], dtype="int8"),
            "INVALID_ARGUMENT",
            "INVALID_CONFIG",
            ("spec.dtype",),
        ),
        (evaluate(servers, trained, enabled=False), "INVALID_ARGUMENT", "INVALID_CONFIG", ("spec.enabled",)),
        (evaluate(servers, trained, num_samples=1000), "INVALID_ARGUMENT", "INVALID_CONFIG", ("spec.num_samples",)),
        (evaluate(servers, untrained), "FAILED_PRECONDITION", "NOT_TRAINED", ("model",)),
        (evaluate(servers, "ftjob_none"), "NOT_FOUND", "MODEL_NOT_FOUND", ("model",)),
        (evaluate(servers, f"{trained}@10"), "NOT_FOUND", "CHECKPOINT_NOT_FOUND", ("model",)),
        (evaluate(servers, f"{trained}@ten"), "INVALID_ARGUMENT", "INVALID_MODEL", ("model",)),
        (export(servers, f"{trained}@10"), "NOT_FOUND", "CHECKPOINT_NOT_FOUND", ("model",)),
        (export(servers, f"{trained}@ten"), "INVALID_ARGUMENT", "INVALID_MODEL", ("model",)),
        (
            export(servers, trained, hub=HubPush(repo_id="org/x")),
            "INVALID_ARGUMENT",
            "INVALID_CONFIG",
            ("secrets.hub_write_token",),
        ),
        (export(servers, trained, hub=HubPush()), "INVALID_ARGUMENT", "INVALID_CONFIG", ("spec.hub.repo_id",)),
        (create(request(model=alias)), "INVALID_ARGUMENT", "INVALID_MODEL", ("data",)),
        (create(request(model=alias, against=alias)), "INVALID_ARGUMENT", "INVALID_MODEL", ("against",)),
        (create(request(model=tuned, against="ft:none")), "NOT_FOUND", "MODEL_NOT_FOUND", ("against",)),
        (create(request(model=tuned, data=[hub])), "INVALID_ARGUMENT", "INVALID_MODEL", ("data[0].dataset",)),
        (create(request(model=tuned, data=[weighted])), "INVALID_ARGUMENT", "INVALID_MODEL", ("data[0].weight",)),
        (create(request()), "INVALID_ARGUMENT", "INVALID_MODEL", ("model",)),
    ):
        refused = await refusal(call)
        assert (refused.code.name, refused.reason, refused.fields) == (code, reason, fields)


async def test_base_model_is_evaluated_without_a_job(servers: ResultServers) -> None:
    """How good the base model already is should be known before anything is trained."""
    asked = evaluation_api.CreateEvaluationRequest(model="smollm2-135m", spec=EvaluationSpec(prompts=["Is 7 odd?"]))
    made = (await servers.evaluations.CreateEvaluation(asked)).evaluation
    assert (made.model, made.against, made.job_id) == ("smollm2-135m", "", "")
    assert (made.spec.max_rows, list(made.spec.prompts), made.max_attempts) == (200, ["Is 7 odd?"], 3)
    worker = await servers.worker()
    given = worker.assignment
    assert given.comparison.model.id == "smollm2-135m" and not given.comparison.HasField("against")
    assert given.resolved_spec.base_model == "smollm2-135m" and not given.HasField("preflight")
    saved = worker.path("measurements/0123456789abcdef/000000.jsonl")
    await worker.report(ArtifactSaved(path=saved, kind="evaluation_measurements", sha256="0" * 64))
    await worker.fail("KILLED")
    again = await servers.worker()
    assert [each.path for each in again.assignment.measurements] == [saved], "it goes on with the rows that it has"
    await again.complete()
    ended = await servers.evaluations.GetEvaluation(evaluation_api.GetEvaluationRequest(evaluation_id=made.id))
    assert ended.evaluation.state == JobState.JOB_STATE_SUCCEEDED
    assert (await servers.jobs.ListFineTuningJobs(job_api.ListFineTuningJobsRequest())).fine_tuning_jobs == []
    await servers.evaluations.DeleteEvaluation(evaluation_api.DeleteEvaluationRequest(evaluation_id=made.id))
    assert await pages(servers, 10) == []


async def test_settings_that_need_a_second_model_are_refused_without_one(servers: ResultServers) -> None:
    """A gain over nothing would be INCONCLUSIVE for ever; the caller finds out after the measurement."""
    judge = {"type": "compare_model", "name": "better", "model": "base"}
    judge["input"] = [{"role": "user", "content": "{{first.output_text}} or {{second.output_text}}?"}]  # type: ignore[assignment]
    spec = EvaluationSpec(
        prompts=["Is 7 odd?"], gate=[{"metric": "loss", "max_value": 9}, {"metric": "loss", "min_gain": 0}]
    )
    spec.graders.add().update(judge)
    request = evaluation_api.CreateEvaluationRequest(model="smollm2-135m", spec=spec)
    refused = await refusal(servers.evaluations.CreateEvaluation(request))
    assert (refused.code.name, refused.reason) == ("INVALID_ARGUMENT", "INVALID_CONFIG")
    assert refused.fields == ("spec.gate[1].min_gain", "spec.graders[0].type")


async def test_unknown_model_is_not_found_and_nearest_alias_is_named(servers: ResultServers) -> None:
    """UNIMPLEMENTED would read as a missing feature, where only a name is misspelt."""
    for model, hint in (
        ("smolm2-135m", "Did you mean smollm2-135m?"),
        ("no such model", "is neither an alias"),
        ("../models/own", "is neither an alias"),
        ("ft:smollm2-135m", "no such fine-tuning job"),
    ):
        for call in (
            servers.evaluations.CreateEvaluation(evaluation_api.CreateEvaluationRequest(model=model)),
            servers.exports.CreateExport(export_api.CreateExportRequest(model=model)),
        ):
            refused = await refusal(call)
            found = (refused.code, refused.reason, refused.fields)
            assert found == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", ("model",))
            assert hint in refused.message


async def test_base_model_is_exported_without_a_job(servers: ResultServers) -> None:
    """Whoever compares a tuned model with its base on his own machine needs both in the same form."""
    spec = ExportSpec(formats=[MERGED], dtype="bfloat16")
    asked = export_api.CreateExportRequest(model="smollm2-135m", spec=spec, request_id="one")
    made = (await servers.exports.CreateExport(asked)).export
    assert (made.model, made.job_id, list(made.formats)) == ("smollm2-135m", "", [MERGED])
    assert (made.spec.dtype, made.max_attempts) == ("bfloat16", 3)
    assert (await servers.exports.CreateExport(asked)).export.id == made.id, "a repeated call makes no second one"
    worker = await servers.worker()
    given = worker.assignment
    assert given.fine_tuning_job_id == made.id and not given.HasField("preflight") and not given.HasField("training")
    assert given.comparison.model.base_model.id == "smollm2-135m"
    assert not given.comparison.model.HasField("checkpoint")
    assert list(given.resolved_spec.export.formats) == [MERGED]
    await worker.complete()
    got = (await servers.exports.GetExport(export_api.GetExportRequest(export_id=made.id))).export
    assert (got.state, got.job_id, got.model) == (JobState.JOB_STATE_SUCCEEDED, "", "smollm2-135m")
    listed = await servers.exports.ListExports(export_api.ListExportsRequest())
    assert [each.id for each in listed.exports] == [made.id]
    await servers.exports.DeleteExport(export_api.DeleteExportRequest(export_id=made.id))
    assert not (await servers.exports.ListExports(export_api.ListExportsRequest())).exports


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        (ExportSpec(), ("spec.formats",)),
        (ExportSpec(dtype="float16"), ("spec.formats",)),
        (ExportSpec(formats=[MERGED, ADAPTER]), ("spec.formats[1]",)),
        (ExportSpec(formats=[ExportFormat.EXPORT_FORMAT_UNSPECIFIED]), ("spec.formats[0]",)),
        (ExportSpec(formats=[GGUF_ADAPTER]), ("spec.formats[0]",)),
        (ExportSpec(formats=[MERGED], merge_base="trained"), ("spec.merge_base",)),
        (ExportSpec(formats=[MERGED], hub=HubPush(repo_id="org/name")), ("spec.hub",)),
        (ExportSpec(formats=[MERGED], gguf_types=["f16"]), ("spec.gguf_types",)),
        (ExportSpec(formats=[GGUF], dtype="float16"), ("spec.dtype",)),
    ],
)
async def test_base_model_is_refused_what_needs_a_training(
    servers: ResultServers, spec: ExportSpec, fields: tuple[str, ...]
) -> None:
    """A package without the form that was asked for would be noticed where it is served."""
    request = export_api.CreateExportRequest(model="org/name@main", spec=spec)
    refused = await refusal(servers.exports.CreateExport(request))
    assert (refused.code.name, refused.reason, refused.fields) == ("INVALID_ARGUMENT", "INVALID_CONFIG", fields)


async def test_inl_base_model_is_refused_as_gguf(servers: ResultServers) -> None:
    request = export_api.CreateExportRequest(model="inl-small", spec=ExportSpec(formats=[GGUF]))
    refused = await refusal(servers.exports.CreateExport(request))
    assert (refused.reason, refused.fields) == ("INVALID_CONFIG", ("spec.formats",))


async def test_job_resolved_by_another_version_is_refused_with_advice(servers: ResultServers) -> None:
    """An internal error would be reported as a defect of the server, and says nothing about what to do."""
    trained = await servers.job()
    async with servers.ledger.database.write() as session:
        job = (await session.exec(select(Work).where(Work.id == trained))).one()
        resolved = ConfigResolved.FromString(job.config or b"")
        resolved.resolved_spec.hyperparameters.max_length = -1
        job.config = resolved.SerializeToString()
        session.add(job)
    for call in (evaluate(servers, trained), export(servers, trained)):
        refused = await refusal(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_MISMATCH")
        assert "hyperparameters.max_length" in refused.message
        assert "create the job again" in refused.message
    assert await ObservedSpeeds(servers.ledger.database).latest() == [], "it must not make every estimate fail"


async def test_id_of_another_kind_is_not_found(servers: ResultServers) -> None:
    """`ftf jobs cancel ev_…` must not end an evaluation through the methods of jobs."""
    job_id = await servers.job()
    made = (await evaluate(servers, job_id)).evaluation
    refused = await refusal(servers.jobs.CancelFineTuningJob(job_api.CancelFineTuningJobRequest(job_id=made.id)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
    refused = await refusal(servers.exports.GetExport(export_api.GetExportRequest(export_id=made.id)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "EXPORT_NOT_FOUND")
    refused = await refusal(
        anext(aiter(servers.jobs.WatchFineTuningJob(job_api.WatchFineTuningJobRequest(job_id=made.id))))
    )
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
    listed = await servers.jobs.ListFineTuningJobs(job_api.ListFineTuningJobsRequest())
    assert [job.id for job in listed.fine_tuning_jobs] == [job_id]


async def test_lists_filter_by_job_and_state_over_pages(servers: ResultServers) -> None:
    jobs = [await servers.job(), await servers.job()]
    for job_id in jobs:
        await evaluate(servers, job_id)
    succeeded, queued = JobState.JOB_STATE_SUCCEEDED, JobState.JOB_STATE_QUEUED
    assert len(await pages(servers, 1)) == 4
    assert len(await pages(servers, 3, job_id=jobs[0])) == 2
    assert len(await pages(servers, 1, states=[queued])) == 2
    left = await pages(servers, 1, states=[succeeded], job_id=jobs[1])
    assert [each.reason for each in left] == ["COMPLETED"]
    everything = await pages(servers, 2)
    assert [each.id for each in everything] == sorted((each.id for each in everything), reverse=True)


async def test_lists_of_unknown_job_are_not_found(servers: ResultServers) -> None:
    """An empty list would read as a job without results, when its id has a typing error."""
    made = (await evaluate(servers, await servers.job())).evaluation
    for id in ("ftjob_none", made.id):
        got = await refusal(servers.jobs.GetFineTuningJob(job_api.GetFineTuningJobRequest(job_id=id)))
        for call in (
            servers.evaluations.ListEvaluations(evaluation_api.ListEvaluationsRequest(job_id=id)),
            servers.exports.ListExports(export_api.ListExportsRequest(job_id=id)),
            servers.jobs.ListCheckpoints(job_api.ListCheckpointsRequest(job_id=id)),
            servers.jobs.ListFineTuningJobEvents(job_api.ListFineTuningJobEventsRequest(job_id=id)),
            servers.jobs.GetMetrics(job_api.GetMetricsRequest(job_id=id)),
        ):
            refused = await refusal(call)
            assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
            assert refused.message == got.message


async def pages(servers: ResultServers, size: int, **filters: Any) -> list[Any]:
    listed: list[Any] = []
    token = ""
    while True:
        request = evaluation_api.ListEvaluationsRequest(page_size=size, page_token=token, **filters)
        answer = await servers.evaluations.ListEvaluations(request)
        assert len(answer.evaluations) <= size
        listed += answer.evaluations
        token = answer.next_page_token
        if not token:
            return listed
