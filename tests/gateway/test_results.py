"""Evaluations and exports over a real channel: those that jobs leave, and those asked for alone."""

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
from finetuneflow.v1.event_pb2 import ArtifactSaved, ConfigResolved, Phase
from finetuneflow.v1.export_service_pb2_grpc import ExportServiceStub
from finetuneflow.v1.fine_tuning_job_pb2 import JobState
from finetuneflow.v1.fine_tuning_job_spec_pb2 import (
    DataSource,
    EvaluationSpec,
    ExportFormat,
    ExportSpec,
    FineTuningJobSpec,
)
from finetuneflow.v1.fine_tuning_service_pb2_grpc import FineTuningServiceStub
from gateway.observed_speeds import ObservedSpeeds
from gateway.servicers import fine_tuning, results
from gateway.servicers.work import WorkMethods
from gateway.sql.database import Database
from gateway.sql.tables import Attempt, SavedArtifact, SavedResult, Work, WorkEvent
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


@dataclass
class Room:
    evaluations: Any
    exports: Any
    jobs: Any
    ledger: Ledger
    requests: WorkerRequests
    told: Recorder
    store: ArtifactStore

    async def job(self, *, stages: int = 4, **spec: Any) -> str:
        """A job that has completed so many of its stages."""
        asked = FineTuningJobSpec(base_model="tiny", training_data=[DataSource(dataset="ds_1")], **spec)
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
        attempt = self.told.offered[-1]
        worker = Worker(self.requests, f"{len(self.told.offered):032x}")
        answer = await worker.claim(attempt)
        assert answer.HasField("assignment"), answer
        return worker


@pytest.fixture
async def room(database: Database, nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Room]:
    told = Recorder()
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "test", echo=False)
    await bus.ensure_streams()
    fanout = Fanout(database, bus)
    await fanout.start()
    ledger = Ledger(database, fanout.publish, told.offer, told.discard)
    store = ArtifactStore(f"file://{tmp_path / 'artifacts'}")
    catalogue = Catalogue(tmp_path)
    evaluations = results.Evaluations(WorkMethods(EVALUATION, ledger, fanout, store), catalogue)
    exports = results.Exports(WorkMethods(EXPORT, ledger, fanout, store), catalogue)
    jobs = fine_tuning.FineTuning(WorkMethods(FINE_TUNING_JOB, ledger, fanout, store), None, None)  # type: ignore[arg-type]
    async with (
        serving(evaluation_api, "EvaluationService", results.add_evaluations_to_server, evaluations) as first,
        serving(export_api, "ExportService", results.add_exports_to_server, exports) as second,
        serving(job_api, "FineTuningService", fine_tuning.add_to_server, jobs) as third,
        grpc.aio.insecure_channel(first) as to_evaluations,
        grpc.aio.insecure_channel(second) as to_exports,
        grpc.aio.insecure_channel(third) as to_jobs,
    ):
        yield Room(
            EvaluationServiceStub(to_evaluations),
            ExportServiceStub(to_exports),
            FineTuningServiceStub(to_jobs),
            ledger,
            WorkerRequests(ledger, NoTrainers()),
            told,
            store,
        )
    await bus.close()


def evaluate(room: Room, job_id: str, request_id: str = "", **spec: Any) -> Any:
    request = evaluation_api.CreateEvaluationRequest(
        model=f"ft:{job_id}", spec=EvaluationSpec(**spec), request_id=request_id
    )
    return room.evaluations.CreateEvaluation(request)


def export(room: Room, job_id: str, request_id: str = "", **spec: Any) -> Any:
    request = export_api.CreateExportRequest(model=f"ft:{job_id}", spec=ExportSpec(**spec), request_id=request_id)
    return room.exports.CreateExport(request)


async def test_a_jobs_stages_leave_the_same_resources_as_those_asked_for_alone(room: Room) -> None:
    """A client that lists evaluations should not need to know where each came from."""
    job_id = await room.job(evaluation=EvaluationSpec(num_samples=3, enabled=True))
    job = (await room.jobs.GetFineTuningJob(job_api.GetFineTuningJobRequest(job_id=job_id))).fine_tuning_job
    found = await room.evaluations.GetEvaluation(evaluation_api.GetEvaluationRequest(evaluation_id=job.evaluation_id))
    left = found.evaluation
    await evaluate(room, job_id, num_samples=7)
    await (await room.worker()).complete()
    (alone, listed) = (
        await room.evaluations.ListEvaluations(evaluation_api.ListEvaluationsRequest(job_id=job_id))
    ).evaluations
    assert listed == left
    for each, samples in ((left, 3), (alone, 7)):
        assert (each.job_id, each.model, each.state) == (job_id, f"ft:{job_id}", JobState.JOB_STATE_SUCCEEDED)
        assert (each.result.base_loss, each.result.tuned_loss, each.spec.num_samples) == (4.0, 3.0, samples)
        assert each.HasField("end_time")
    packed = (await room.exports.GetExport(export_api.GetExportRequest(export_id=job.export_id))).export
    assert (packed.job_id, list(packed.formats), packed.result.package_path) == (job_id, [ADAPTER], "x.zip")
    assert job.tuned_model == packed.model


async def test_an_export_asked_for_alone_lives_as_a_job_does(room: Room) -> None:
    """State, progress, attempts, events, watch and retries of a finished model's export."""
    job_id = await room.job()
    made = (await export(room, job_id, formats=[ADAPTER])).export
    assert (made.state, made.attempt, made.max_attempts) == (JobState.JOB_STATE_QUEUED, 1, 3)
    watching = room.exports.WatchExport(export_api.WatchExportRequest(export_id=made.id))
    worker = await room.worker()
    assert worker.assignment.fine_tuning_job_id == job_id
    assert worker.assignment.training.total_steps == 48
    assert worker.assignment.evaluation.tuned_loss == 3.0
    await worker.report(Phase(name="packing", index=3, count=5, fraction=0.5))
    progress = (await room.exports.GetExport(export_api.GetExportRequest(export_id=made.id))).export.progress
    assert (progress.phase, progress.phase_index, progress.phase_count, progress.phase_fraction) == (
        "packing",
        3,
        5,
        0.5,
    )
    await worker.fail("KILLED")
    worker = await room.worker()
    path = f"jobs/{made.id}/export/2/report.md"
    await worker.report(ArtifactSaved(path=path, kind="export_file"))
    await worker.complete()
    done = (await room.exports.GetExport(export_api.GetExportRequest(export_id=made.id))).export
    assert (done.state, done.failed_attempts) == (JobState.JOB_STATE_SUCCEEDED, 1)
    assert [(each.attempt, each.outcome) for each in done.attempts] == [(1, "FAILED"), (2, "COMPLETED")]
    assert done.result.package_path == "x.zip"
    events = [event async for answer in watching for event in answer.events]
    assert [event.sequence for event in events] == list(range(1, done.last_sequence + 1))
    assert {event.job_id for event in events} == {made.id}
    page = await room.exports.ListExportEvents(export_api.ListExportEventsRequest(export_id=made.id))
    assert list(page.events) == events


async def test_the_same_request_id_makes_one_evaluation(room: Room) -> None:
    """A client that repeats a call after a lost answer must not pay twice; its own number for the job may stand."""
    job_id = await room.job(stages=2)
    first, again = await asyncio.gather(*(evaluate(room, job_id, "order-7", num_samples=2) for _ in range(2)))
    assert first.evaluation.id == again.evaluation.id
    exported = (await export(room, job_id, "order-7")).export
    assert exported.id.startswith("ex_")
    refused = await refusal(evaluate(room, job_id, "order-7", num_samples=3))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_a_cancelled_export_stops_and_a_deleted_one_leaves_nothing(room: Room) -> None:
    job_id = await room.job()
    waiting, running = [(await export(room, job_id)).export for _ in range(2)]
    worker = await room.worker()
    artifact = f"jobs/{running.id}/export/1/report.md"
    await worker.report(ArtifactSaved(path=artifact, kind="export_file"))
    with room.store.begin_write(f"default/{artifact}") as writer:
        writer.write(b"report")
        writer.commit()
    requests = [export_api.CancelExportRequest(export_id=each.id) for each in (waiting, running)]
    cancelled = [(await room.exports.CancelExport(request)).export.state for request in requests]
    assert cancelled == [JobState.JOB_STATE_CANCELLED, JobState.JOB_STATE_CANCELLING]
    refused = await refusal(room.exports.DeleteExport(export_api.DeleteExportRequest(export_id=running.id)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_ENDED")
    await worker.fail()
    for each in (waiting, running):
        await room.exports.DeleteExport(export_api.DeleteExportRequest(export_id=each.id))
        gone = await refusal(room.exports.GetExport(export_api.GetExportRequest(export_id=each.id)))
        assert (gone.code, gone.reason) == (grpc.StatusCode.NOT_FOUND, "EXPORT_NOT_FOUND")
    assert not room.store.exists(f"default/{artifact}")
    async with room.ledger.database.read() as session:
        for table in (Attempt, WorkEvent, SavedArtifact):
            rows = (await session.exec(select(table.work_id).where(table.work_id.startswith("ex_")))).all()  # type: ignore[attr-defined]
            assert not rows, table


async def test_a_job_takes_what_was_made_of_its_model_with_it(room: Room) -> None:
    """Rows of somebody's data would otherwise survive in the evaluations of a deleted job."""
    job_id = await room.job()
    made = (await evaluate(room, job_id)).evaluation
    delete = job_api.DeleteFineTuningJobRequest(job_id=job_id)
    refused = await refusal(room.jobs.DeleteFineTuningJob(delete))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_ENDED")
    assert made.id in refused.message
    await (await room.worker()).complete()
    await room.jobs.DeleteFineTuningJob(delete)
    async with room.ledger.database.read() as session:
        for table in (Work, SavedResult):
            assert not (await session.exec(select(table.id))).all(), table


async def test_what_a_jobs_stage_left_is_cancelled_and_deleted_with_the_job(room: Room) -> None:
    """A watch of it would wait for ever, and a deletion would leave the job pointing at nothing."""
    job_id = await room.job()
    job = (await room.jobs.GetFineTuningJob(job_api.GetFineTuningJobRequest(job_id=job_id))).fine_tuning_job
    stub, id = room.exports, job.export_id
    for call in (
        stub.CancelExport(export_api.CancelExportRequest(export_id=id)),
        stub.DeleteExport(export_api.DeleteExportRequest(export_id=id)),
        stub.ListExportEvents(export_api.ListExportEventsRequest(export_id=id)),
        anext(aiter(stub.WatchExport(export_api.WatchExportRequest(export_id=id)))),
    ):
        refused = await refusal(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BELONGS_TO_JOB")
        assert job_id in refused.message


async def test_what_cannot_be_made_is_refused_with_the_field(room: Room) -> None:
    trained = await room.job(stages=2)
    untrained = await room.job(stages=1)
    request = evaluation_api.CreateEvaluationRequest
    base = room.evaluations.CreateEvaluation(request(model="smollm2-135m"))
    for call, code, reason, fields in (
        (export(room, trained, formats=[MERGED]), "UNIMPLEMENTED", "NOT_IMPLEMENTED", ("spec.formats[0]",)),
        (evaluate(room, trained, enabled=False), "INVALID_ARGUMENT", "INVALID_CONFIG", ("spec.enabled",)),
        (evaluate(room, trained, num_samples=1000), "INVALID_ARGUMENT", "INVALID_CONFIG", ("spec.num_samples",)),
        (evaluate(room, untrained), "FAILED_PRECONDITION", "NOT_TRAINED", ("model",)),
        (evaluate(room, "ftjob_none"), "NOT_FOUND", "MODEL_NOT_FOUND", ("model",)),
        (evaluate(room, f"{trained}@10"), "UNIMPLEMENTED", "NOT_IMPLEMENTED", ("model",)),
        (base, "UNIMPLEMENTED", "NOT_IMPLEMENTED", ("model",)),
        (room.evaluations.CreateEvaluation(request()), "INVALID_ARGUMENT", "INVALID_MODEL", ("model",)),
    ):
        refused = await refusal(call)
        assert (refused.code.name, refused.reason, refused.fields) == (code, reason, fields)


async def test_a_word_that_names_no_model_is_answered_with_the_nearest_one(room: Room) -> None:
    """UNIMPLEMENTED would read as a missing feature, where only a name is misspelt."""
    for model, hint in (
        ("smolm2-135m", "Did you mean smollm2-135m?"),
        ("no such model", "is neither an alias"),
        ("../models/own", "is neither an alias"),
        ("ft:smollm2-135m", "no such fine-tuning job"),
    ):
        for call in (
            room.evaluations.CreateEvaluation(evaluation_api.CreateEvaluationRequest(model=model)),
            room.exports.CreateExport(export_api.CreateExportRequest(model=model)),
        ):
            refused = await refusal(call)
            found = (refused.code, refused.reason, refused.fields)
            assert found == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", ("model",))
            assert hint in refused.message
    base = await refusal(room.exports.CreateExport(export_api.CreateExportRequest(model="org/name@main")))
    assert (base.code, base.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")


async def test_a_job_that_another_version_resolved_is_refused_with_advice(room: Room) -> None:
    """An internal error would be reported as a defect of the server, and says nothing about what to do."""
    trained = await room.job()
    async with room.ledger.database.write() as session:
        job = (await session.exec(select(Work).where(Work.id == trained))).one()
        resolved = ConfigResolved.FromString(job.config or b"")
        resolved.resolved_spec.hyperparameters.max_length = -1
        job.config = resolved.SerializeToString()
        session.add(job)
    for call in (evaluate(room, trained), export(room, trained)):
        refused = await refusal(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_MISMATCH")
        assert "hyperparameters.max_length" in refused.message
        assert "create the job again" in refused.message
    assert await ObservedSpeeds(room.ledger.database).latest() == [], "it must not make every estimate fail"


async def test_ids_of_one_kind_are_unknown_to_another(room: Room) -> None:
    """`ftf jobs cancel ev_…` must not end an evaluation through the methods of jobs."""
    job_id = await room.job()
    made = (await evaluate(room, job_id)).evaluation
    refused = await refusal(room.jobs.CancelFineTuningJob(job_api.CancelFineTuningJobRequest(job_id=made.id)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
    refused = await refusal(room.exports.GetExport(export_api.GetExportRequest(export_id=made.id)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "EXPORT_NOT_FOUND")
    refused = await refusal(
        anext(aiter(room.jobs.WatchFineTuningJob(job_api.WatchFineTuningJobRequest(job_id=made.id))))
    )
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
    listed = await room.jobs.ListFineTuningJobs(job_api.ListFineTuningJobsRequest())
    assert [job.id for job in listed.fine_tuning_jobs] == [job_id]


async def test_lists_filter_by_job_and_state_over_pages(room: Room) -> None:
    jobs = [await room.job(), await room.job()]
    for job_id in jobs:
        await evaluate(room, job_id)
    succeeded, queued = JobState.JOB_STATE_SUCCEEDED, JobState.JOB_STATE_QUEUED
    assert len(await pages(room, 1)) == 4
    assert len(await pages(room, 3, job_id=jobs[0])) == 2
    assert len(await pages(room, 1, states=[queued])) == 2
    left = await pages(room, 1, states=[succeeded], job_id=jobs[1])
    assert [each.reason for each in left] == ["COMPLETED"]
    everything = await pages(room, 2)
    assert [each.id for each in everything] == sorted((each.id for each in everything), reverse=True)


async def test_lists_of_a_job_that_does_not_exist_say_so(room: Room) -> None:
    """An empty list would read as a job without results, when its id has a typing error."""
    made = (await evaluate(room, await room.job())).evaluation
    for id in ("ftjob_none", made.id):
        got = await refusal(room.jobs.GetFineTuningJob(job_api.GetFineTuningJobRequest(job_id=id)))
        for call in (
            room.evaluations.ListEvaluations(evaluation_api.ListEvaluationsRequest(job_id=id)),
            room.exports.ListExports(export_api.ListExportsRequest(job_id=id)),
            room.jobs.ListCheckpoints(job_api.ListCheckpointsRequest(job_id=id)),
            room.jobs.ListFineTuningJobEvents(job_api.ListFineTuningJobEventsRequest(job_id=id)),
            room.jobs.GetMetrics(job_api.GetMetricsRequest(job_id=id)),
        ):
            refused = await refusal(call)
            assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
            assert refused.message == got.message


async def pages(room: Room, size: int, **filters: Any) -> list[Any]:
    listed: list[Any] = []
    token = ""
    while True:
        request = evaluation_api.ListEvaluationsRequest(page_size=size, page_token=token, **filters)
        answer = await room.evaluations.ListEvaluations(request)
        assert len(answer.evaluations) <= size
        listed += answer.evaluations
        token = answer.next_page_token
        if not token:
            return listed
