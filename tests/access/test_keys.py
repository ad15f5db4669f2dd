"""API keys: what they may create, how they end, and how wrong ones are met."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from finetuneflow.v1.access_pb2 import Role
from finetuneflow.v1.audit_service_pb2 import ListAuditEntriesRequest
from finetuneflow.v1.fine_tuning_service_pb2 import CancelFineTuningJobRequest, WatchFineTuningJobRequest
from finetuneflow.v1.key_service_pb2 import CreateKeyRequest, GetCallerRequest, ListKeysRequest, RevokeKeyRequest
from finetuneflow.v1.key_service_pb2_grpc import KeyServiceStub
from finetuneflow.v1.secret_service_pb2 import DeleteSecretRequest, SetSecretRequest
from finetuneflow.v1.tenant_service_pb2 import CreateTenantRequest, UpdateTenantRequest
from gateway.sql.database import Database
from tests.access.conftest import Tokens, create_key
from tests.access.gateway import AccessGateway, call
from tests.gateway.serving import add_job


def id_of(token: str) -> str:
    return token.split("_")[1]


def in_seconds(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(time.time_ns() + int(seconds * 1e9))
    return stamp


def test_member_creates_keys_of_its_own_tenant_with_at_most_its_role(
    access_gateway: AccessGateway, tokens: Tokens
) -> None:
    """A program of a team gets a key of its own without an operator, and never more than its maker has."""
    created = create_key(access_gateway, tokens.member, role=Role.ROLE_READER, display_name="dashboard")
    caller = access_gateway.call("KeyService.GetCaller", created).responses[0]
    assert (caller.tenant, caller.role) == ("acme", Role.ROLE_READER)
    assert caller.key.created_by == id_of(tokens.member)
    for request in (
        CreateKeyRequest(tenant="globex"),
        CreateKeyRequest(role=Role.ROLE_OPERATOR),
        CreateKeyRequest(tenant="globex", role=Role.ROLE_READER),
    ):
        answer = access_gateway.call("KeyService.CreateKey", tokens.member, request)
        assert (answer.code, answer.reason) == (grpc.StatusCode.PERMISSION_DENIED, "OPERATORS_ONLY"), answer


def test_reader_creates_readers_only(access_gateway: AccessGateway, tokens: Tokens) -> None:
    created = create_key(access_gateway, tokens.reader)
    assert access_gateway.call("KeyService.GetCaller", created).responses[0].role == Role.ROLE_READER


def test_key_of_an_unknown_tenant_is_refused(access_gateway: AccessGateway, tokens: Tokens) -> None:
    answer = access_gateway.call("KeyService.CreateKey", tokens.operator, CreateKeyRequest(tenant="nobody"))
    assert (answer.code, answer.reason) == (grpc.StatusCode.NOT_FOUND, "TENANT_NOT_FOUND")


@pytest.mark.parametrize(
    "request_",
    [
        CreateKeyRequest(expire_time=in_seconds(-1)),
        CreateKeyRequest(display_name="x" * 121),
        CreateKeyRequest(display_name="two\nlines"),
        CreateKeyRequest(role=17),  # type: ignore[arg-type]
    ],
)
def test_invalid_key_request_names_its_field(
    access_gateway: AccessGateway, tokens: Tokens, request_: CreateKeyRequest
) -> None:
    answer = access_gateway.call("KeyService.CreateKey", tokens.operator, request_)
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, answer


def test_revoking_a_key_ends_what_it_created(access_gateway: AccessGateway, tokens: Tokens) -> None:
    """A thief who has made himself keys must lose them with the stolen one."""
    stolen = create_key(access_gateway, tokens.operator, tenant="acme", role=Role.ROLE_MEMBER)
    child = create_key(access_gateway, stolen)
    answer = access_gateway.call("KeyService.RevokeKey", tokens.operator, RevokeKeyRequest(key_id=id_of(stolen)))
    assert answer.responses[0].key.HasField("revoke_time")
    for token in (stolen, child):
        _wait_until_refused(access_gateway, token, "KEY_REVOKED")


def test_key_that_a_member_created_creates_no_others(access_gateway: AccessGateway, tokens: Tokens) -> None:
    """A key in the middle of a chain that is revoked would leave the keys behind it alive."""
    child = create_key(access_gateway, tokens.member)
    answer = access_gateway.call("KeyService.CreateKey", child)
    assert (answer.code, answer.reason) == (grpc.StatusCode.PERMISSION_DENIED, "OPERATORS_ONLY"), answer


def test_key_that_was_just_revoked_creates_no_others(access_gateway: AccessGateway, tokens: Tokens) -> None:
    """The gateway believes it for two seconds more: time enough for a thief to make one that stays."""
    stolen = create_key(access_gateway, tokens.operator, tenant="acme", role=Role.ROLE_MEMBER)
    assert access_gateway.call("KeyService.GetCaller", stolen).code is grpc.StatusCode.OK
    access_gateway.call("KeyService.RevokeKey", tokens.operator, RevokeKeyRequest(key_id=id_of(stolen)))
    answer = access_gateway.call("KeyService.CreateKey", stolen)
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_REVOKED"), answer


def test_keys_made_by_an_operator_outlive_its_key(access_gateway: AccessGateway, tokens: Tokens) -> None:
    """An operator who leaves does not take the keys of all users with him."""
    leaving = create_key(access_gateway, tokens.operator, role=Role.ROLE_OPERATOR)
    users = create_key(access_gateway, leaving, tenant="acme")
    access_gateway.call("KeyService.RevokeKey", tokens.operator, RevokeKeyRequest(key_id=id_of(leaving)))
    _wait_until_refused(access_gateway, leaving, "KEY_REVOKED")
    assert access_gateway.call("KeyService.GetCaller", users).code is grpc.StatusCode.OK


def test_callers_see_and_revoke_only_their_own_keys(access_gateway: AccessGateway, tokens: Tokens) -> None:
    mine = create_key(access_gateway, tokens.reader, display_name="mine")
    listed = access_gateway.call("KeyService.ListKeys", tokens.reader, ListKeysRequest(page_size=1000))
    ids = {key.id for key in listed.responses[0].keys}
    assert {id_of(mine), id_of(tokens.reader)} <= ids
    assert id_of(tokens.member) not in ids
    answer = access_gateway.call("KeyService.RevokeKey", tokens.reader, RevokeKeyRequest(key_id=id_of(tokens.member)))
    assert (answer.code, answer.reason) == (grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")
    assert access_gateway.call("KeyService.RevokeKey", tokens.reader, RevokeKeyRequest(key_id=id_of(mine))).responses


def test_list_of_keys_pages_through_all_and_has_no_secret(access_gateway: AccessGateway, tokens: Tokens) -> None:
    for number in range(5):
        create_key(access_gateway, tokens.operator, tenant="globex", display_name=f"number {number}")
    ids: list[str] = []
    request = ListKeysRequest(page_size=2, include_ended=True)
    while True:
        [page] = access_gateway.call("KeyService.ListKeys", tokens.operator, request).responses
        ids += [key.id for key in page.keys]
        assert tokens.member.split("_")[2] not in str(page)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert len(ids) == len(set(ids)) >= 10
    assert id_of(tokens.revoked) in ids


def test_key_stops_at_its_expire_time(access_gateway: AccessGateway, tokens: Tokens) -> None:
    brief = create_key(access_gateway, tokens.operator, tenant="acme", expire_time=in_seconds(1.5))
    _wait_until_refused(access_gateway, brief, "KEY_EXPIRED")


def insert_running_job(gateway: AccessGateway, tenant: str) -> str:
    """Inserts a job that does not end, as no service runs; returns its id."""

    async def insert() -> str:
        database = await Database.open(gateway.database)
        job_id = await add_job(database, tenant=tenant, state="JOB_STATE_RUNNING")
        await database.close()
        return job_id

    return asyncio.run(insert())


@pytest.fixture
def watched(access_gateway: AccessGateway, tokens: Tokens) -> str:
    return insert_running_job(access_gateway, "acme")


def _watch(gateway: AccessGateway, token: str, job_id: str) -> tuple[grpc.Channel, object]:
    channel = grpc.insecure_channel(gateway.address)
    watch = channel.unary_stream(
        "/finetuneflow.v1.FineTuningService/WatchFineTuningJob",
        request_serializer=WatchFineTuningJobRequest.SerializeToString,
    )
    metadata = (("authorization", f"Bearer {token}"),)
    stream = watch(WatchFineTuningJobRequest(job_id=job_id), metadata=metadata, timeout=120)
    next(stream)
    return channel, stream


def _end_of(stream: object) -> grpc.StatusCode:
    try:
        for _ in stream:  # type: ignore[attr-defined]
            pass
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def test_watch_ends_when_its_key_is_revoked(access_gateway: AccessGateway, tokens: Tokens, watched: str) -> None:
    """Otherwise someone who has left goes on reading for the days that a job trains."""
    leaver = create_key(access_gateway, tokens.operator, tenant="acme")
    channel, stream = _watch(access_gateway, leaver, watched)
    access_gateway.call("KeyService.RevokeKey", tokens.operator, RevokeKeyRequest(key_id=id_of(leaver)))
    assert _end_of(stream) is grpc.StatusCode.UNAUTHENTICATED
    channel.close()


def test_watch_ends_when_its_key_expires(access_gateway: AccessGateway, tokens: Tokens, watched: str) -> None:
    brief = create_key(access_gateway, tokens.operator, tenant="acme", expire_time=in_seconds(3))
    channel, stream = _watch(access_gateway, brief, watched)
    assert _end_of(stream) is grpc.StatusCode.UNAUTHENTICATED
    channel.close()


def test_watch_ends_when_its_tenant_is_disabled(access_gateway: AccessGateway, tokens: Tokens) -> None:
    access_gateway.call("TenantService.CreateTenant", tokens.operator, CreateTenantRequest(name="bankrupt"))
    key = create_key(access_gateway, tokens.operator, tenant="bankrupt")

    channel, stream = _watch(access_gateway, key, insert_running_job(access_gateway, "bankrupt"))
    request = UpdateTenantRequest(name="bankrupt", disabled=True)
    access_gateway.call("TenantService.UpdateTenant", tokens.operator, request)
    assert _end_of(stream) is grpc.StatusCode.UNAUTHENTICATED
    channel.close()


def test_operator_cannot_disable_its_own_tenant(access_gateway: AccessGateway, tokens: Tokens) -> None:
    request = UpdateTenantRequest(name="default", disabled=True)
    answer = access_gateway.call("TenantService.UpdateTenant", tokens.operator, request)
    assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "OWN_TENANT")


def test_health_is_open_and_reflection_is_on_loopback(access_gateway: AccessGateway, tokens: Tokens) -> None:
    """Orchestrators have no key."""
    with grpc.insecure_channel(access_gateway.address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=60
        )
        assert next(listing).list_services_response.service


def test_audit_has_who_did_what_to_which_resource(access_gateway: AccessGateway, tokens: Tokens, watched: str) -> None:
    request = CancelFineTuningJobRequest(job_id=watched)
    for token in (tokens.reader, tokens.other_member, tokens.member):
        access_gateway.call("FineTuningService.CancelFineTuningJob", token, request)
    listing = ListAuditEntriesRequest(resource=watched)
    [page] = access_gateway.call("AuditService.ListAuditEntries", tokens.operator, listing).responses
    assert [(entry.key_id, entry.method, entry.status, entry.address) for entry in page.entries] == [
        (id_of(tokens.reader), "CancelFineTuningJob", "PERMISSION_DENIED", "127.0.0.1"),
        (id_of(tokens.other_member), "CancelFineTuningJob", "NOT_FOUND", "127.0.0.1"),
        (id_of(tokens.member), "CancelFineTuningJob", "OK", "127.0.0.1"),
    ]


def test_no_key_is_in_database_log_or_audit(access_gateway: AccessGateway, tokens: Tokens) -> None:
    """A backup or a log must not open the system."""
    access_gateway.call("KeyService.GetCaller", tokens.wrong_secret)
    [page] = access_gateway.call("AuditService.ListAuditEntries", tokens.operator).responses
    files = [path for path in access_gateway.home.rglob("*") if path.is_file() and path != access_gateway.key_file]
    for token in vars(tokens).values():
        secret = token.split("_")[2]
        assert secret not in str(page)
        for path in files:
            assert secret.encode() not in path.read_bytes(), path


@pytest.fixture
def strict_gateway(tmp_path: Path) -> Iterator[AccessGateway]:
    gateway = AccessGateway(tmp_path, AUTH_FAILURES_PER_MINUTE="5", MAX_KEYS_PER_TENANT="3", MAX_SECRETS_PER_TENANT="2")
    gateway.start()
    yield gateway
    gateway.stop()


def test_wrong_keys_from_one_address_are_limited(strict_gateway: AccessGateway) -> None:
    """Guessing must not cost the database a query for each try; a caller that was let in before goes on."""
    operator = strict_gateway.operator
    with grpc.insecure_channel(strict_gateway.address) as channel:
        codes = []
        for _ in range(8):
            call(channel, "KeyService.GetCaller", operator)
            codes.append(call(channel, "KeyService.GetCaller", "ftf_wrong").code)
        assert codes[:5] == [grpc.StatusCode.UNAUTHENTICATED] * 5
        assert codes[5:] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 3
        assert call(channel, "KeyService.GetCaller", operator).code is grpc.StatusCode.OK
        # Nor does it lock out callers of the same address that were not let in before.
        request = CreateKeyRequest(role=Role.ROLE_READER)
        [created] = call(channel, "KeyService.CreateKey", operator, request).responses
        assert call(channel, "KeyService.GetCaller", created.token).code is grpc.StatusCode.OK


def test_keys_and_secrets_of_a_tenant_are_limited(strict_gateway: AccessGateway) -> None:
    """One member could otherwise fill the database that all tenants share."""
    operator = strict_gateway.operator
    created = [
        strict_gateway.call("KeyService.CreateKey", operator, CreateKeyRequest(role=Role.ROLE_READER)) for _ in range(4)
    ]
    assert [answer.reason for answer in created] == ["", "", "TOO_MANY_KEYS", "TOO_MANY_KEYS"]
    revoked = id_of(created[0].responses[0].token)
    strict_gateway.call("KeyService.RevokeKey", operator, RevokeKeyRequest(key_id=revoked))
    again = strict_gateway.call("KeyService.CreateKey", operator, CreateKeyRequest(role=Role.ROLE_READER))
    assert again.code is grpc.StatusCode.OK, again
    for name, reason in (("a", ""), ("b", ""), ("c", "TOO_MANY_SECRETS"), ("a", "")):
        answer = strict_gateway.call("SecretService.SetSecret", operator, SetSecretRequest(name=name, value="x"))
        assert answer.reason == reason, answer


def test_only_bearer_tokens_are_keys(access_gateway: AccessGateway, tokens: Tokens) -> None:
    """Also right after the key was let in."""
    with grpc.insecure_channel(access_gateway.address) as channel:
        stub = KeyServiceStub(channel)
        stub.GetCaller(GetCallerRequest(), metadata=[("authorization", f"Bearer {tokens.member}")], timeout=60)
        with pytest.raises(grpc.RpcError) as refused:
            stub.GetCaller(GetCallerRequest(), metadata=[("authorization", f"Basic {tokens.member}")], timeout=60)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_text_in_place_of_a_name_is_not_in_the_audit_log(access_gateway: AccessGateway, tokens: Tokens) -> None:
    """A secret that was typed into the wrong field could not be deleted there."""
    mistaken = "hf_" + "A" * 34
    access_gateway.call("SecretService.DeleteSecret", tokens.member, DeleteSecretRequest(name=mistaken))
    listing = ListAuditEntriesRequest(key_id=id_of(tokens.member), page_size=1000)
    [page] = access_gateway.call("AuditService.ListAuditEntries", tokens.operator, listing).responses
    assert mistaken not in str(page)
    assert any(entry.method == "DeleteSecret" and entry.status == "INVALID_ARGUMENT" for entry in page.entries)


def test_operator_key_file_that_others_can_read_stops_the_gateway(tmp_path: Path) -> None:
    """A key that every user of the machine can read is no key."""
    key_file = tmp_path / "operator.key"
    key_file.write_text("ftf_" + "a" * 16 + "_" + "0" * 64)
    key_file.chmod(0o644)
    done = subprocess.run(
        [sys.executable, "-m", "gateway"],
        env=os.environ | {"FTF_HOME": str(tmp_path), "FTF_GATEWAY_OPERATOR_KEY_FILE": str(key_file)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert f"chmod 600 {key_file}" in done.stderr


def _wait_until_refused(gateway: AccessGateway, token: str, reason: str) -> None:
    """Returns when the key is refused; a gateway believes a key for two seconds."""
    while (answer := gateway.call("KeyService.GetCaller", token)).code is grpc.StatusCode.OK:
        pass
    assert answer.reason == reason, answer
