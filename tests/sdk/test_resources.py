import dataclasses
import typing
from datetime import UTC, datetime

import pytest

from finetuneflow import Client, InvalidArgument
from finetuneflow.resources import Job, JobState, event
from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2
from tests.fakes.gateway import JOB, FakeGateway


def test_a_job_reads_like_a_python_object(client: Client) -> None:
    job = client.jobs.get(JOB)
    assert job.state == "SUCCEEDED"
    assert job.state is JobState.SUCCEEDED
    assert job.create_time == datetime.fromtimestamp(1_700_000_000, UTC)
    assert job.end_time is None
    assert job.training is None
    assert job.progress is not None
    assert job.progress.loss == 2.0
    assert job.progress.eval_loss is None
    assert job.spec == {"base_model": "smollm2-135m", "method": "lora"}
    assert job.proto.DESCRIPTOR.name == "FineTuningJob"
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.id = "other"  # type: ignore[misc]


def test_a_state_of_a_newer_server_is_kept() -> None:
    job = Job.from_proto(fine_tuning_job_pb2.FineTuningJob(state=typing.cast(typing.Any, 77)))
    assert job.state == "77"
    assert not job.ended


def test_every_kind_of_event_has_a_payload_that_can_be_read() -> None:
    kinds = [field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields]
    assert set(kinds) == set(event.PAYLOADS)
    for kind in kinds:
        message = event_pb2.Event(job_id=JOB, sequence=1)
        getattr(message, kind).SetInParent()
        read = event.Event.from_proto(message)
        assert read.kind == kind
        assert getattr(read, kind) is read.payload


def test_lists_page_by_themselves(client: Client, gateway: FakeGateway) -> None:
    gateway.jobs = 250
    assert [job.id for job in client.jobs.list()] == [f"ftjob_{n}" for n in range(250)]
    assert len(gateway.requests("ListFineTuningJobs")) == 3
    assert len(list(client.jobs.list(limit=120))) == 120


def test_a_list_is_filtered_by_words(client: Client, gateway: FakeGateway) -> None:
    list(client.jobs.list(states=["running", JobState.PAUSED], labels={"team": "a"}))
    (request,) = gateway.requests("ListFineTuningJobs")
    assert list(request.states) == [3, 5]
    assert request.labels == {"team": "a"}
    with pytest.raises(InvalidArgument, match="did you mean `running`"):
        client.jobs.list(states=["runing"])


def test_history_is_read_to_its_end_whatever_is_filtered_out(client: Client, gateway: FakeGateway) -> None:
    assert [e.sequence for e in client.jobs.events(JOB)] == list(range(1, len(gateway.events) + 1))
    assert [e.kind for e in client.jobs.events(JOB, kinds=["eval"])] == ["eval"]


def test_curves_models_recipes_and_machines(client: Client) -> None:
    curves = client.jobs.metrics(JOB)
    assert curves["loss"].steps == [1, 2, 3, 4, 5]
    assert curves["loss"].values[0] == pytest.approx(3.9)
    assert next(client.models.list(kind="base")).kind == "BASE"
    assert client.recipes.get("cpu-demo").spec["lora"] == {"r": 16}
    (machine,) = client.probe.hardware()
    assert machine.gpus[0].temperature_celsius == 40
    assert machine.gpus[0].utilization is None
    assert client.exports.get("ex_1").formats == ("ADAPTER",)
