import grpc
import pytest

from finetuneflow import Client, InvalidArgument, JobFailed, Reason
from tests.fakes.gateway import JOB, FakeGateway, history, refuse


def test_the_reason_of_a_refusal_equals_its_constant(client: Client, gateway: FakeGateway) -> None:
    gateway.refusals["GetFineTuningJob"] = lambda context: refuse(
        context, grpc.StatusCode.INVALID_ARGUMENT, "no", "NO_GPU", []
    )
    with pytest.raises(InvalidArgument) as caught:
        client.jobs.get(JOB)
    assert caught.value.reason == Reason.NO_GPU
    assert caught.value.reason != Reason.NO_PROBE


def test_the_reason_of_a_failed_job_equals_its_constant(client: Client, gateway: FakeGateway) -> None:
    gateway.events = history(failed=True)
    with pytest.raises(JobFailed) as caught:
        client.jobs.wait(JOB)
    assert caught.value.reason == caught.value.job.reason == Reason.BAD_DATA


def test_client_side_refusal_has_the_servers_reason(client: Client) -> None:
    """One handler is enough for an invalid spec, whichever side detects it."""
    with pytest.raises(InvalidArgument) as caught:
        client.jobs.create(base_model="smollm2-135m", training_data="ds_1", hyperparameters={"num_epoch": 1})
    assert caught.value.reason == Reason.INVALID_CONFIG


def test_unknown_reason_of_newer_server_is_kept() -> None:
    assert Reason("WRITTEN_TOMORROW") == "WRITTEN_TOMORROW"
