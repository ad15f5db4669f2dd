"""FineTuningService over a real channel: refusals and idempotency."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from sqlmodel import select

from chassis.bus.event_bus import Bus
from chassis.store.artifact_store import ArtifactStore
from engine.catalogue import Catalogue
from finetuneflow.v1 import fine_tuning_service_pb2 as api
from finetuneflow.v1.fine_tuning_job_pb2 import JobState
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from finetuneflow.v1.fine_tuning_service_pb2_grpc import FineTuningServiceStub
from finetuneflow.v1.work_pb2 import Node
from gateway.observed_speeds import ObservedSpeeds
from gateway.passthrough import Passthrough
from gateway.planning_target import PlanningTargets
from gateway.preflights import Preflights
from gateway.servicers.fine_tuning import FineTuning, add_to_server
from gateway.servicers.work import WorkMethods
from gateway.sql.database import Database
from gateway.sql.tables import UploadedDataset, Work, now
from gateway.work.kinds import FINE_TUNING_JOB
from gateway.work.ledger import Ledger
from tests.gateway.conftest import Recorder
from tests.gateway.serving import Refusal, refusal, serving
from tests.servers.nats import NatsServer


class NoLiveEvents:
    """A fan-out is attached to a broker; these tests watch nothing."""


@dataclass
class JobServer:
    stub: Any
    database: Database
    recorder: Recorder
    bus: Bus


@pytest.fixture
async def server(
    database: Database, ledger: Ledger, recorder: Recorder, nats_server: NatsServer, tmp_path: Path
) -> AsyncIterator[JobServer]:
    async with database.write() as session:
        session.add(
            UploadedDataset(
                id="ds_1",
                tenant="default",
                display_name="rows",
                filename="rows.jsonl",
                size_bytes=1,
                sha256="",
                path="datasets/ds_1/rows.jsonl",
                create_time=now(),
            )
        )
    store = ArtifactStore(f"file://{tmp_path / 'artifacts'}")
    methods = WorkMethods(FINE_TUNING_JOB, ledger, NoLiveEvents(), store)  # type: ignore[arg-type]
    catalogue = Catalogue(tmp_path)
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "test")
    await bus.ensure_streams()
    passthrough = Passthrough(bus)
    targets = PlanningTargets(passthrough, ObservedSpeeds(database))
    servicer = FineTuning(methods, catalogue, Preflights(database, passthrough, targets, catalogue), passthrough.nodes)
    async with (
        serving(api, "FineTuningService", add_to_server, servicer) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield JobServer(FineTuningServiceStub(channel), database, recorder, bus)
    await bus.close()


def spec(**fields: Any) -> FineTuningJobSpec:
    values = {"base_model": "smollm2-135m", "training_data": [{"dataset": "ds_1"}]} | fields
    return json_format.ParseDict(values, FineTuningJobSpec())


def create(server: JobServer, **fields: Any) -> Any:
    return server.stub.CreateFineTuningJob(api.CreateFineTuningJobRequest(spec=spec(**fields)))


async def jobs(server: JobServer) -> list[Work]:
    async with server.database.read() as session:
        return list((await session.exec(select(Work))).all())


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"base_model": ""}, "spec.base_model"),
    ({"base_model": "smollm3-135m"}, "spec.base_model"),
    ({"base_model": "/etc/passwd"}, "spec.base_model"),
    ({"base_model": "https://example.org/model"}, "spec.base_model"),
    ({"training_data": []}, "spec.training_data"),
    ({"recipe": "cpu-demmo"}, "spec.recipe"),
    ({"holdout_fraction": 0.9}, "spec.holdout_fraction"),
    ({"max_attempts": 0}, "spec.max_attempts"),
    ({"seed": -1}, "spec.seed"),
    ({"hyperparameters": {"learning_rate": -1}}, "spec.hyperparameters.learning_rate"),
    ({"hyperparameters": {"learning_rate": "NaN"}}, "spec.hyperparameters.learning_rate"),
    ({"hyperparameters": {"num_epochs": 0}}, "spec.hyperparameters.num_epochs"),
    ({"hyperparameters": {"per_device_train_batch_size": 0}}, "spec.hyperparameters.per_device_train_batch_size"),
    ({"hyperparameters": {"lr_scheduler_type": "cosin"}}, "spec.hyperparameters.lr_scheduler_type"),
    ({"hyperparameters": {"max_length": 2}}, "spec.hyperparameters.max_length"),
    ({"lora": {"r": 0}}, "spec.lora.r"),
    ({"lora": {"lora_dropout": 1}}, "spec.lora.lora_dropout"),
    ({"quantization": {"bits": 3}}, "spec.quantization.bits"),
    ({"display_name": "x" * 129}, "spec.display_name"),
    ({"resources": {"pool": "Not A Pool"}}, "spec.resources.pool"),
    ({"labels": {"team": "a\0"}}, "spec.labels['team']"),
    ({"system_prompt": "a\0b"}, "spec.system_prompt"),
]


@pytest.mark.parametrize(("fields", "path"), INVALID)
async def test_invalid_value_is_refused_with_its_field(server: JobServer, fields: dict[str, Any], path: str) -> None:
    refused = await refusal(create(server, **fields))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason
    assert any(field.startswith(path) for field in refused.fields), refused
    assert not await jobs(server)
    assert not server.recorder.offered


async def test_all_violations_are_returned_at_once(server: JobServer) -> None:
    refused = await refusal(create(server, hyperparameters={"learning_rate": -1, "max_length": 1}, lora={"r": 0}))
    assert len(refused.fields) == 3


async def test_nul_character_in_spec_and_in_row_have_the_same_reason(server: JobServer) -> None:
    assert (await refusal(create(server, system_prompt="a\0b"))).reason == "NUL_CHARACTER"


async def test_refusal_of_unknown_recipe_suggests_nearest_name(server: JobServer) -> None:
    refused = await refusal(create(server, recipe="cpu-demmo"))
    assert refused.reason == "RECIPE_NOT_FOUND"
    assert "cpu-demo" in refused.message


async def test_task_of_the_harness_must_be_that_of_a_running_evaluator(server: JobServer) -> None:
    """Otherwise a job would be trained for hours before its evaluation fails for a mistyped name."""

    async def refused(*tasks: str) -> Refusal:
        return await refusal(create(server, evaluation={"harness_tasks": tasks}))

    none = await refused("sums")
    await server.bus.put_node(Node(id="evaluator-1", service="evaluator", harness_tasks=["colours", "sums"]))
    await server.bus.put_node(Node(id="evaluator-2", service="evaluator", harness_tasks=["words"]))
    mistyped = await refused("words", "sum")

    assert (none.code, none.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_HARNESS_TASK")
    assert "FTF_EVALUATOR_HARNESS_TASKS" in none.message
    assert mistyped.reason == "UNKNOWN_HARNESS_TASK" and mistyped.fields == ("spec.evaluation.harness_tasks[1]",)
    assert "Did you mean sums?" in mistyped.message and "colours, sums, words" in mistyped.message
    await create(server, evaluation={"harness_tasks": ["words", "sums"]})


async def test_gguf_types_must_be_those_of_one_running_exporter(server: JobServer) -> None:
    """Otherwise a job would be trained for hours before its export fails."""

    def asked(*types: str) -> Any:
        return create(server, export={"formats": ["EXPORT_FORMAT_GGUF"], "gguf_types": types})

    await server.bus.put_node(Node(id="exporter-1", service="exporter", gguf_types=["q8_0", "q4_k_m"]))
    await server.bus.put_node(Node(id="exporter-2", service="exporter", gguf_types=["q8_0", "q6_k"]))
    refused = await refusal(asked("f16", "q4_k_m", "q6_k"))

    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "GGUF_TYPE_UNAVAILABLE")
    assert refused.fields == ("spec.export.gguf_types[1]", "spec.export.gguf_types[2]")
    assert "FTF_EXPORTER_LIBLLAMA" in refused.message and "@node-llama-cpp/linux-x64@" in refused.message
    await asked("f16", "q4_k_m")
    await server.bus.remove_node("exporter", "exporter-1")
    await asked("f16", "q8_0")
    dry = api.CreateFineTuningJobRequest(
        spec=spec(export={"formats": ["EXPORT_FORMAT_GGUF"], "gguf_types": ["q4_k_m"]}), validate_only=True
    )
    assert (await refusal(server.stub.CreateFineTuningJob(dry))).reason == "GGUF_TYPE_UNAVAILABLE"


async def test_an_unknown_dataset_is_not_found(server: JobServer) -> None:
    refused = await refusal(create(server, training_data=[{"dataset": "ds_1"}, {"dataset": "ds_2"}]))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "DATASET_NOT_FOUND")
    assert refused.fields == ("spec.training_data[1].dataset",)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"evaluation_data": [{"dataset": "ds_1", "weight": 0.5}]}, "spec.evaluation_data[0].weight"),
    ],
)
async def test_unimplemented_fields_are_refused(server: JobServer, fields: dict[str, Any], path: str) -> None:
    refused = await refusal(create(server, **fields))
    assert refused.code is grpc.StatusCode.UNIMPLEMENTED
    assert any(field.startswith(path) for field in refused.fields), refused


async def test_the_same_request_id_makes_one_job(server: JobServer) -> None:
    request = api.CreateFineTuningJobRequest(spec=spec(), request_id="once")
    answers = await asyncio.gather(*(server.stub.CreateFineTuningJob(request) for _ in range(5)))
    assert len({answer.fine_tuning_job.id for answer in answers}) == 1
    assert len(await jobs(server)) == 1
    assert len(server.recorder.offered) == 1
    other = api.CreateFineTuningJobRequest(spec=spec(seed=7), request_id="once")
    refused = await refusal(server.stub.CreateFineTuningJob(other))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_dry_run_without_probe_is_unavailable(server: JobServer) -> None:
    """Unchecked data is never reported as valid; errors that need no check are still reported."""
    request = api.CreateFineTuningJobRequest(spec=spec(), request_id="dry", validate_only=True)
    refused = await refusal(server.stub.CreateFineTuningJob(request))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_PROBE")
    request.spec.hyperparameters.num_epochs = -1
    refused = await refusal(server.stub.CreateFineTuningJob(request))
    assert refused.fields == ("spec.hyperparameters.num_epochs",)
    assert not await jobs(server)


async def test_dry_run_checks_request_id_like_create(server: JobServer) -> None:
    request = api.CreateFineTuningJobRequest(spec=spec(), request_id="twice")
    await server.stub.CreateFineTuningJob(request)
    other = api.CreateFineTuningJobRequest(spec=spec(seed=7), request_id="twice", validate_only=True)
    refused = await refusal(server.stub.CreateFineTuningJob(other))
    assert refused.code is grpc.StatusCode.ALREADY_EXISTS


async def test_invalid_list_and_history_requests_are_refused(server: JobServer) -> None:
    """An invalid argument that is silently accepted looks like a job without events."""
    job_id = (await create(server)).fine_tuning_job.id
    beyond = server.stub.ListFineTuningJobEvents(
        api.ListFineTuningJobEventsRequest(job_id=job_id, after_sequence=10**9)
    )
    assert (await refusal(beyond)).code is grpc.StatusCode.OUT_OF_RANGE
    names = api.GetMetricsRequest(job_id=job_id, names=[f"n{number}" for number in range(257)])
    assert (await refusal(server.stub.GetMetrics(names))).reason == "TOO_MANY_NAMES"
    loud = server.stub.WatchFineTuningJob(api.WatchFineTuningJobRequest(job_id=job_id, min_severity=77))  # type: ignore[arg-type]
    assert (await refusal(loud.read())).reason == "INVALID_SEVERITY"
    long = await refusal(server.stub.GetFineTuningJob(api.GetFineTuningJobRequest(job_id="x" * 10**6)))
    assert long.code is grpc.StatusCode.NOT_FOUND


async def test_create_returns_the_stored_job(server: JobServer) -> None:
    created = (await create(server, labels={"team": "a"})).fine_tuning_job
    got = await server.stub.GetFineTuningJob(api.GetFineTuningJobRequest(job_id=created.id))
    (attempt,) = got.fine_tuning_job.attempts
    assert (attempt.attempt, attempt.state) == (1, "READY")
    assert "No probe" in got.fine_tuning_job.waiting
    for name in ("attempts", "waiting"):
        got.fine_tuning_job.ClearField(name)
    assert got.fine_tuning_job == created
    assert created.state == JobState.JOB_STATE_VALIDATING
    assert created.spec == spec(labels={"team": "a"})


async def test_jobs_are_listed_newest_first_with_filter_and_pages(server: JobServer) -> None:
    made = [(await create(server, labels={"team": team})).fine_tuning_job.id for team in "aabab"]
    listed: list[str] = []
    token = ""
    while True:
        request = api.ListFineTuningJobsRequest(page_size=2, page_token=token, labels={"team": "a"})
        answer = await server.stub.ListFineTuningJobs(request)
        listed += [job.id for job in answer.fine_tuning_jobs]
        token = answer.next_page_token
        if not token:
            break
    assert listed == [made[3], made[1], made[0]]
    ended = api.ListFineTuningJobsRequest(states=[JobState.JOB_STATE_FAILED])
    assert not (await server.stub.ListFineTuningJobs(ended)).fine_tuning_jobs


async def test_every_method_answers_not_found_for_an_unknown_job(server: JobServer) -> None:
    for method in (
        "GetFineTuningJob",
        "CancelFineTuningJob",
        "PauseFineTuningJob",
        "ResumeFineTuningJob",
        "DeleteFineTuningJob",
        "ListFineTuningJobEvents",
        "ListCheckpoints",
        "GetMetrics",
    ):
        request = getattr(api, f"{method}Request")(job_id="ftjob_none")
        refused = await refusal(getattr(server.stub, method)(request))
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND"), method


async def test_a_job_is_deleted_only_after_its_end(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.servicers.work._ROWS_AT_ONCE", 1)
    job_id = (await create(server)).fine_tuning_job.id
    request = api.DeleteFineTuningJobRequest(job_id=job_id)
    refused = await refusal(server.stub.DeleteFineTuningJob(request))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_ENDED")
    await server.stub.CancelFineTuningJob(api.CancelFineTuningJobRequest(job_id=job_id))
    await server.stub.DeleteFineTuningJob(request)
    assert not await jobs(server)


async def test_events_are_listed_in_pages_after_a_cursor(server: JobServer) -> None:
    job_id = (await create(server)).fine_tuning_job.id
    await server.stub.CancelFineTuningJob(api.CancelFineTuningJobRequest(job_id=job_id))
    first = await server.stub.ListFineTuningJobEvents(api.ListFineTuningJobEventsRequest(job_id=job_id, page_size=1))
    rest = await server.stub.ListFineTuningJobEvents(
        api.ListFineTuningJobEventsRequest(job_id=job_id, after_sequence=first.through_sequence)
    )
    assert [event.sequence for event in [*first.events, *rest.events]] == [1, 2]
    refused = await refusal(
        server.stub.ListFineTuningJobEvents(api.ListFineTuningJobEventsRequest(job_id=job_id, kinds=["logs"]))
    )
    assert refused.reason == "INVALID_KIND"
