import socket
import time

import grpc
import pytest

import finetuneflow
from finetuneflow import Client, InvalidArgument, ServerError, ServerUnreachable, Unavailable, transport
from finetuneflow.errors import ERRORS, ApiError
from tests.fakes.gateway import JOB, FakeGateway, refuse


@pytest.mark.parametrize("code", list(ERRORS))
def test_each_status_has_its_exception(
    client: Client, gateway: FakeGateway, code: grpc.StatusCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_SECONDS_FOR_A_PART", 0.1)
    gateway.refusals["GetFineTuningJob"] = lambda context: refuse(
        context, code, "no", "SOME_REASON", [("spec.seed", "too large")]
    )
    with pytest.raises(ERRORS[code]) as caught:
        client.jobs.get(JOB)
    error: ApiError = caught.value
    assert (error.message, error.reason, error.code) == ("no", "SOME_REASON", code)
    assert error.violations == (("spec.seed", "too large"),)
    assert error.metadata == {"near": "x"}
    assert "spec.seed: too large" in str(error)


def test_internal_error_raises_server_error_without_retry(client: Client, gateway: FakeGateway) -> None:
    gateway.refusals["GetFineTuningJob"] = lambda context: refuse(
        context, grpc.StatusCode.INTERNAL, "error 7f3a", "INTERNAL"
    )
    with pytest.raises(ServerError, match="7f3a"):
        client.jobs.get(JOB)
    assert len(gateway.calls) == 1


def test_unavailable_service_is_not_an_unreachable_server(
    client: Client, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_SECONDS_FOR_A_PART", 0.1)
    gateway.refusals["GetHardware"] = lambda context: refuse(
        context, grpc.StatusCode.UNAVAILABLE, "no probe runs", "NO_PROBE"
    )
    with pytest.raises(Unavailable, match="no probe") as caught:
        client.probe.hardware()
    assert not isinstance(caught.value, ServerUnreachable)
    assert len(gateway.calls) > 1, "the call must be retried: the service may be starting"


def test_calls_are_retried_during_a_restart(client: Client, gateway: FakeGateway) -> None:
    client.jobs.get(JOB)
    gateway.outages = {"GetFineTuningJob": 3}
    assert client.jobs.get(JOB).id == JOB


def test_unreachable_server_raises_quickly_with_its_address() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    began = time.monotonic()
    with Client(address) as client, pytest.raises(ServerUnreachable, match=address) as caught:
        client.jobs.get(JOB)
    assert time.monotonic() - began < 5
    assert "ftf up" in str(caught.value)


@pytest.mark.parametrize("address", ["http://x:1", "nowhere", ":7460", "host:"])
def test_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidArgument, match="not a valid address"):
        Client(address)


def test_token_is_not_sent_unencrypted_to_another_host(
    client: Client, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTF_TOKEN", "secret")
    monkeypatch.setenv("FTF_ADDRESS", client.address)
    with Client() as with_token:
        with_token.jobs.get(JOB)
    assert gateway.tokens == ["Bearer secret"]
    with pytest.raises(InvalidArgument, match="unencrypted"):
        Client("example.org:443")


def test_every_public_name_is_documented() -> None:
    assert finetuneflow.errors.__doc__ is not None
    for kind in {*ERRORS.values(), ServerUnreachable, ServerError}:
        assert f"| {kind.__name__} |" in finetuneflow.errors.__doc__
        assert kind.__name__ in finetuneflow.__all__
