import dataclasses
import typing
from datetime import UTC, datetime

import pytest

from finetuneflow import Client, InvalidArgument
from finetuneflow.resources import Job, JobState, event
from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2
from tests.fakes.gateway import JOB, FakeGateway


def test_job_has_attributes_with_python_types(client: Client) -> None:
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


def test_unknown_state_of_newer_server_is_its_number() -> None:
    job = Job.from_proto(fine_tuning_job_pb2.FineTuningJob(state=typing.cast(typing.Any, 77)))
    assert job.state == "77"
    assert not job.ended


def test_every_event_kind_has_a_readable_payload() -> None:
    kinds = [field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields]
    assert set(kinds) == set(event.PAYLOADS)
    for kind in kinds:
        message = event_pb2.Event(job_id=JOB, sequence=1)
        getattr(message, kind).SetInParent()
        read = event.Event.from_proto(message)
        assert read.kind == kind
        assert getattr(read, kind) is read.payload


def test_lists_fetch_further_pages_automatically(client: Client, gateway: FakeGateway) -> None:
    gateway.jobs = 250
    assert [job.id for job in client.jobs.list()] == [f"ftjob_{n}" for n in range(250)]
    assert len(gateway.requests("ListFineTuningJobs")) == 3
    assert len(list(client.jobs.list(limit=120))) == 120


def test_list_accepts_state_names_and_labels_as_filter(client: Client, gateway: FakeGateway) -> None:
    list(client.jobs.list(states=["running", JobState.PAUSED], labels={"team": "a"}))
    (request,) = gateway.requests("ListFineTuningJobs")
    assert list(request.states) == [3, 5]
    assert request.labels == {"team": "a"}
    with pytest.raises(InvalidArgument, match="did you mean `running`"):
        client.jobs.list(states=["runing"])


def test_filtered_events_are_listed_to_the_end(client: Client, gateway: FakeGateway) -> None:
    assert [e.sequence for e in client.jobs.events(JOB)] == list(range(1, len(gateway.events) + 1))
    assert [e.kind for e in client.jobs.events(JOB, kinds=["eval"])] == ["eval"]


def test_metrics_models_recipes_and_hardware_are_returned(client: Client) -> None:
    curves = client.jobs.metrics(JOB)
    assert curves["loss"].steps == [1, 2, 3, 4, 5]
    assert curves["loss"].values[0] == pytest.approx(3.9)
    assert next(client.models.list(kind="base")).kind == "BASE"
    assert client.recipes.get("cpu-demo").spec["lora"] == {"r": 16}
    (machine,) = client.probe.hardware()
    assert machine.gpus[0].temperature_celsius == 40
    assert machine.gpus[0].utilization is None
    assert client.exports.get("ex_1").formats == ("ADAPTER",)
