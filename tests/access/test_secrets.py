"""SecretService of a real gateway: what it accepts, what it tells, and what is left on its disk."""

import grpc
import pytest

from finetuneflow.v1 import fine_tuning_service_pb2, secret_service_pb2
from finetuneflow.v1.audit_service_pb2 import ListAuditEntriesRequest
from finetuneflow.v1.fine_tuning_job_spec_pb2 import DataSource, FineTuningJobSpec
from finetuneflow.v1.secret_pb2 import Secret
from tests.access.conftest import Tokens
from tests.access.gateway import AccessGateway, Answer

VALUE = "hf_CanaryOfTheGateway"


def set_secret(gateway: AccessGateway, token: str, name: str = "hub", value: str = VALUE) -> Answer:
    return gateway.call("SecretService.SetSecret", token, secret_service_pb2.SetSecretRequest(name=name, value=value))


def delete_secret(gateway: AccessGateway, token: str, name: str) -> Answer:
    return gateway.call("SecretService.DeleteSecret", token, secret_service_pb2.DeleteSecretRequest(name=name))


def listed(gateway: AccessGateway, token: str) -> list[Secret]:
    (response,) = gateway.call("SecretService.ListSecrets", token).responses
    return list(response.secrets)


def test_a_secret_is_set_listed_and_deleted_without_its_value(access_gateway: AccessGateway, tokens: Tokens) -> None:
    answer = set_secret(access_gateway, tokens.member)
    assert answer.code is grpc.StatusCode.OK, answer
    assert [secret.name for secret in listed(access_gateway, tokens.reader)] == ["hub"]
    assert not listed(access_gateway, tokens.reader)[0].HasField("last_use_time")
    assert VALUE not in str(answer) + str(listed(access_gateway, tokens.member))
    assert delete_secret(access_gateway, tokens.member, "hub").code is grpc.StatusCode.OK
    assert listed(access_gateway, tokens.member) == []
    assert delete_secret(access_gateway, tokens.member, "hub").reason == "SECRET_NOT_FOUND"


def test_value_is_nowhere_on_the_gateways_disk(access_gateway: AccessGateway, tokens: Tokens) -> None:
    """Its logs, its database and its write-ahead log are what backups and log collectors copy."""
    assert set_secret(access_gateway, tokens.member).code is grpc.StatusCode.OK
    assert set_secret(access_gateway, tokens.member, name="No name").reason == "INVALID_REQUEST"
    assert set_secret(access_gateway, tokens.member, value=VALUE * 4000).reason == "INVALID_REQUEST"
    files = [file for file in access_gateway.home.rglob("*") if file.is_file()]
    assert "gateway.sqlite" in {file.name for file in files}
    assert [file.name for file in files if VALUE.encode() in file.read_bytes()] == []
    request = ListAuditEntriesRequest(page_size=1000)
    entries = access_gateway.call("AuditService.ListAuditEntries", access_gateway.operator, request)
    assert "SetSecret" in str(entries.responses) and VALUE not in str(entries.responses)


def test_one_tenants_secrets_do_not_exist_for_another(access_gateway: AccessGateway, tokens: Tokens) -> None:
    """Neither its name nor a job that would use it; two tenants can use one name."""
    assert set_secret(access_gateway, tokens.member, name="of-acme").code is grpc.StatusCode.OK
    other = tokens.other_member
    assert [secret.name for secret in listed(access_gateway, other)] == []
    assert delete_secret(access_gateway, other, "of-acme").reason == "SECRET_NOT_FOUND"
    assert set_secret(access_gateway, other, name="of-acme", value="theirs").code is grpc.StatusCode.OK
    assert delete_secret(access_gateway, other, "of-acme").code is grpc.StatusCode.OK
    assert "of-acme" in {secret.name for secret in listed(access_gateway, tokens.member)}


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [("", "x", "name"), ("Hub", "x", "name"), ("a" * 64, "x", "name"), ("hub\n", "x", "name"), ("a", "", "value")],
)
def test_names_and_values_out_of_range_are_refused(
    access_gateway: AccessGateway, tokens: Tokens, name: str, value: str, field: str
) -> None:
    answer = set_secret(access_gateway, tokens.member, name, value)
    assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"), answer
    assert f"The {field} " in answer.message


def test_a_job_that_names_a_missing_secret_is_refused(access_gateway: AccessGateway, tokens: Tokens) -> None:
    """Otherwise it would fail after it has waited for a node."""
    spec = FineTuningJobSpec(
        base_model="org/model", training_data=[DataSource(dataset="hf://org/rows")], secrets={"hub_token": "nowhere"}
    )
    request = fine_tuning_service_pb2.CreateFineTuningJobRequest(spec=spec)
    answer = access_gateway.call("FineTuningService.CreateFineTuningJob", tokens.member, request)
    assert (answer.code, answer.reason) == (grpc.StatusCode.NOT_FOUND, "SECRET_NOT_FOUND"), answer
    assert "spec.secrets.hub_token" in answer.message and "ftf secrets set nowhere" in answer.message
