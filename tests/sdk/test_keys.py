"""Keys, tenants and the audit log of the client, against a real gateway that asks for keys."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from finetuneflow import (
    AlreadyExists,
    AsyncClient,
    Client,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServerUnreachable,
    Unauthenticated,
)
from finetuneflow.resources import Role
from finetuneflow.v1.key_service_pb2_grpc import KeyServiceServicer, add_KeyServiceServicer_to_server
from tests.access.gateway import AccessGateway
from tests.fakes.gateway import JOB, FakeGateway, refuse


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AccessGateway]:
    gateway = AccessGateway(tmp_path_factory.mktemp("keys"), AUTH_FAILURES_PER_MINUTE="1000000")
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
def operator(real: AccessGateway) -> Iterator[Client]:
    with Client(real.address, token=real.operator, ca="") as client:
        yield client


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n')
    return path


def test_key_shows_its_secret_once_and_not_in_logs(real: AccessGateway, operator: Client) -> None:
    expire_time = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
    key = operator.keys.create(role="reader", display_name="dashboard", expire_time=expire_time)
    assert key.token.startswith(f"ftf_{key.id}_")
    assert key.token not in repr(key)
    assert key.role == "READER"
    assert key.role is Role.READER
    assert key.expire_time == expire_time
    assert key.proto.DESCRIPTOR.name == "CreateKeyResponse"
    (listed,) = [each for each in operator.keys.list() if each.id == key.id]
    assert not hasattr(listed, "token")
    assert (listed.display_name, listed.created_by, listed.last_use_time) == (
        "dashboard",
        real.operator.split("_")[1],
        None,
    )
    with Client(real.address, token=key.token, ca="") as reader:
        caller = reader.keys.caller()
        assert (caller.tenant, caller.role, caller.subject) == ("default", "READER", "")
        assert caller.key is not None
        assert caller.key.id == key.id


def test_reader_that_writes_is_told_which_role_it_needs(real: AccessGateway, operator: Client) -> None:
    key = operator.keys.create(role=Role.READER)
    with Client(real.address, token=key.token, ca="") as reader:
        with pytest.raises(PermissionDenied, match="role member") as caught:
            reader.jobs.cancel("ftjob_0")
        assert (caught.value.reason, caught.value.metadata["role"]) == ("ROLE_TOO_LOW", "member")
        for refused in (
            lambda: reader.tenants.get("default"),
            lambda: next(reader.tenants.list()),
            lambda: next(reader.audit.list()),
            lambda: reader.keys.create(role="operator"),
        ):
            with pytest.raises(PermissionDenied):
                refused()


def test_wrong_arguments_name_their_field(operator: Client) -> None:
    with pytest.raises(InvalidArgument, match="did you mean `reader`"):
        operator.keys.create(role="raeder")
    with pytest.raises(InvalidArgument, match="expire_time must be a datetime with a time zone"):
        operator.keys.create(expire_time=datetime(2999, 1, 1))
    with pytest.raises(InvalidArgument, match="in the past"):
        operator.keys.create(expire_time=datetime(2000, 1, 1, tzinfo=UTC))
    with pytest.raises(InvalidArgument, match="after_time"):
        operator.audit.list(after_time=datetime(2000, 1, 1))
    with pytest.raises(NotFound):
        operator.keys.create(tenant="nobody")
    with pytest.raises(NotFound):
        operator.keys.revoke("a" * 16)


def test_ended_keys_are_listed_when_asked_for(operator: Client) -> None:
    key = operator.keys.create()
    revoked = operator.keys.revoke(key.id)
    assert revoked.revoke_time is not None
    assert operator.keys.revoke(key.id).revoke_time == revoked.revoke_time, "a repeated call is no error"
    assert key.id not in [each.id for each in operator.keys.list()]
    assert key.id in [each.id for each in operator.keys.list(include_ended=True)]


def test_tenants_are_created_and_changed(operator: Client) -> None:
    tenant = operator.tenants.create("acme", display_name="Acme Ltd")
    assert (tenant.name, tenant.display_name, tenant.disabled) == ("acme", "Acme Ltd", False)
    with pytest.raises(AlreadyExists):
        operator.tenants.create("acme")
    assert operator.tenants.update("acme", disabled=True).display_name == "Acme Ltd", "what is not given is unchanged"
    assert operator.tenants.update("acme", display_name="").disabled
    assert not operator.tenants.update("acme", disabled=False).disabled
    assert operator.tenants.get("acme").create_time == tenant.create_time
    assert {"acme", "default"} <= {each.name for each in operator.tenants.list()}
    with pytest.raises(FailedPrecondition):
        operator.tenants.update("default", disabled=True)


def test_audit_log_pages_by_itself_and_says_who_did_what(operator: Client) -> None:
    key = operator.keys.create()
    for _ in range(120):
        operator.keys.revoke(key.id)
    entries = list(operator.audit.list(resource=key.id))
    assert [entry.method for entry in entries] == ["CreateKey"] + ["RevokeKey"] * 120
    assert {entry.status for entry in entries} == {"OK"}
    assert [entry.id for entry in entries] == sorted(entry.id for entry in entries)
    assert len(list(operator.audit.list(resource=key.id, limit=5))) == 5
    middle = entries[60].time
    assert middle is not None
    later = [entry for entry in entries if entry.time and entry.time >= middle]
    assert list(operator.audit.list(resource=key.id, after_time=middle)) == later
    assert list(operator.audit.list(key_id=key.id)) == []


async def test_async_client_has_the_same_methods(real: AccessGateway) -> None:
    async with AsyncClient(real.address, token=real.operator, ca="") as client:
        key = await client.keys.create(display_name="async")
        assert (await client.keys.caller()).role == "OPERATOR"
        assert key.id in [each.id async for each in client.keys.list()]
        await client.keys.revoke(key.id)
        assert [entry.method async for entry in client.audit.list(resource=key.id)] == ["CreateKey", "RevokeKey"]
        await client.tenants.create("async")
        assert (await client.tenants.update("async", disabled=True)).disabled
        assert "async" in [each.name async for each in client.tenants.list()]
        assert (await client.tenants.get("async")).disabled
    async with AsyncClient(real.address, token=key.token, ca="") as revoked:
        with pytest.raises(Unauthenticated):
            await revoked.keys.caller()


@dataclass
class Watch:
    """A watch in a thread of its own."""

    client: Client
    job_id: str

    def __post_init__(self) -> None:
        self.failure: Exception | None = None
        self.disconnects: list[Exception] = []
        self.connected = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for _ in self.client.jobs.watch(self.job_id, on_disconnect=self.disconnects.append):
                self.connected.set()
        except Exception as error:  # noqa: BLE001 - compared by the test
            self.failure = error

    def end(self) -> Exception | None:
        self._thread.join(60)
        assert not self._thread.is_alive(), "the watch reconnects for ever"
        return self.failure


@pytest.mark.parametrize("end", ["revoked", "disabled", pytest.param("expired", marks=pytest.mark.long)])
def test_watch_ends_with_its_key(real: AccessGateway, operator: Client, rows: Path, end: str) -> None:
    """A program of a former colleague must neither see more events nor call for ever."""
    tenant = f"watch-{end}"
    operator.tenants.create(tenant)
    with Client(real.address, token=operator.keys.create(tenant=tenant).token, ca="") as colleague:
        job_id = colleague.jobs.create(base_model="smollm2-135m", training_data=rows).id
    expire_time = datetime.now(UTC) + timedelta(seconds=8) if end == "expired" else None
    key = operator.keys.create(tenant=tenant, expire_time=expire_time)
    with Client(real.address, token=key.token, ca="") as client:
        watch = Watch(client, job_id)
        assert watch.connected.wait(60)
        if end == "revoked":
            operator.keys.revoke(key.id)
        elif end == "disabled":
            operator.tenants.update(tenant, disabled=True)
        failure = watch.end()
    assert isinstance(failure, Unauthenticated)
    reasons = {"revoked": "KEY_REVOKED", "disabled": "TENANT_DISABLED", "expired": "KEY_EXPIRED"}
    assert failure.reason == reasons[end]
    assert watch.disconnects == [], "it was no lost connection"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDenied),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ResourceExhausted),
    ],
)
def test_refused_calls_are_not_repeated(
    client: Client, gateway: FakeGateway, rows: Path, code: grpc.StatusCode, error: type[Exception]
) -> None:
    """A client that repeats them uses up the failures of its address and locks its whole network out for a minute."""
    methods = {
        "GetFineTuningJob": lambda: client.jobs.get(JOB),
        "WatchFineTuningJob": lambda: list(client.jobs.watch(JOB)),
        "UploadDataset": lambda: client.datasets.upload(rows),
    }
    for method, call in methods.items():
        gateway.refusals[method] = lambda context: refuse(context, code, "no", "A_REASON")
        with pytest.raises(error):
            call()
        assert len(gateway.requests(method)) == 1, method


class LosesResponses(KeyServiceServicer):
    """Creates keys and loses the connection before each response."""

    created = 0

    def CreateKey(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.created += 1
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


def test_create_whose_response_is_lost_is_not_repeated() -> None:
    """Each call leaves a key that works and that nobody has."""
    servicer = LosesResponses()
    server = grpc.server(ThreadPoolExecutor(1))
    add_KeyServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Client(f"127.0.0.1:{port}", token="", ca="") as client, pytest.raises(ServerUnreachable):
        client.keys.create()
    server.stop(None).wait()
    assert servicer.created == 1
