"""Deliveries of events to webhooks."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import SecretStr
from sqlmodel import select

from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1 import integration_service_pb2 as api
from finetuneflow.v1.fine_tuning_job_spec_pb2 import IntegrationSpec, WebhookSpec
from finetuneflow.v1.integration_pb2 import IntegrationState
from finetuneflow.v1.integration_service_pb2_grpc import (
    IntegrationServiceStub,
    add_IntegrationServiceServicer_to_server,
)
from gateway.deliveries.deliverer import Deliverer
from gateway.deliveries.delivery import MakeSink, RetrySchedule
from gateway.deliveries.http_client import HttpClient
from gateway.deliveries.services import sink_maker
from gateway.deliveries.sinks import DeliveryFailed
from gateway.integrations import delivery_of
from gateway.outbound_addresses import AddressPolicy, AddressRefused
from gateway.secret_store import SecretKeys, SecretStore
from gateway.servicers.integrations import Integrations
from gateway.sql.database import Database
from gateway.sql.tables import Delivery, DeliveryAttemptRow
from gateway.work import lifecycle
from gateway.work.ledger import Ledger
from gateway.work.worker_requests import WorkerRequests
from tests.gateway.conftest import Recorder, WatchedDatabase
from tests.gateway.jobs import Worker, create, events_of, log_at, running
from tests.gateway.serving import serving
from tests.gateway.webhook_receiver import SECRET, Receiver, receiving
from tests.servers.nats import NatsServer

FAST = RetrySchedule(first_seconds=0.02, most_seconds=0.1, attempts=20)
LOOPBACK = AddressPolicy(["127.0.0.1"])


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving(Receiver()) as receiver:
        yield receiver


@pytest.fixture
async def secrets(database: Database, tmp_path: Path) -> SecretStore:
    store = SecretStore(database, SecretKeys(tmp_path / "secrets.key", SecretStr("")))
    await store.set("default", "hook", SECRET)
    return store


def make_sinks(database: Database, http: HttpClient, secrets: SecretStore) -> MakeSink:
    """Makes sinks that store nothing."""
    nowhere = Path("/nonexistent")
    return sink_maker(database, http, secrets, ArtifactStore(nowhere.as_uri()), nowhere)


@asynccontextmanager
async def delivering(
    database: Database,
    secrets: SecretStore,
    *,
    schedule: RetrySchedule = FAST,
    policy: AddressPolicy = LOOPBACK,
    timeout_seconds: float = 5.0,
    lease_seconds: float = 15.0,
) -> AsyncIterator[Deliverer]:
    http = HttpClient(policy, timeout_seconds)
    deliverer = Deliverer(database, make_sinks(database, http, secrets), schedule, lease_seconds=lease_seconds)
    async with running(deliverer.run()):
        yield deliverer
    await http.close()


async def follow(database: Database, job_id: str, receiver: Receiver, *kinds: str) -> str:
    webhook = WebhookSpec(url=receiver.url, secret="hook", kinds=kinds or ("state_changed",))
    row = delivery_of("default", job_id, IntegrationSpec(webhook=webhook))
    async with database.write() as session:
        session.add(row)
    return row.id


async def retry(database: Database, secrets: SecretStore, id_: str) -> None:
    """Asks the gateway for it, as `ftf integrations retry` does."""
    servicer = Integrations(database, LOOPBACK, secrets)
    async with (
        serving(api, "IntegrationService", add_IntegrationServiceServicer_to_server, servicer) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub: Any = IntegrationServiceStub(channel)
        answer = await stub.RetryIntegration(api.RetryIntegrationRequest(integration_id=id_))
    assert answer.integration.state == IntegrationState.INTEGRATION_STATE_RETRYING


async def row_of(database: Database, id_: str) -> Delivery:
    async with database.read() as session:
        return (await session.exec(select(Delivery).where(Delivery.id == id_))).one()


async def until(database: Database, id_: str, condition: Callable[[Delivery], bool]) -> Delivery:
    """Returns the row of a delivery when a process of this test has changed it so."""
    assert isinstance(database, WatchedDatabase)
    async with asyncio.timeout(60):
        while True:
            database.committed.clear()
            if condition(row := await row_of(database, id_)):
                return row
            await database.committed.wait()


async def finish(ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder, job_id: str) -> None:
    """Completes the stages of a job, with some points of curves."""
    while (attempt := recorder.offered[-1]).state == "READY":
        worker = Worker(acceptance, os.urandom(16).hex())
        await worker.claim(attempt)
        if attempt.stage == "STAGE_TRAINING":
            await worker.report(*(log_at(step) for step in range(1, 6)))
        await worker.complete()
        if recorder.offered[-1] is attempt:
            return


async def state_changes(ledger: Ledger, job_id: str) -> list[int]:
    return [event.sequence for event in await events_of(ledger, job_id) if event.HasField("state_changed")]


async def test_a_webhook_gets_every_state_change_once_and_in_order(
    database: Database,
    ledger: Ledger,
    acceptance: WorkerRequests,
    recorder: Recorder,
    receiver: Receiver,
    secrets: SecretStore,
) -> None:
    """The receiver checks each signature; a service that acts on a job's end must hear of it, also on PostgreSQL."""
    job_id = await create(ledger)
    id_ = await follow(database, job_id, receiver)
    async with delivering(database, secrets) as deliverer:
        await receiver.until(lambda: len(receiver.accepted) == 1)
        await finish(ledger, acceptance, recorder, job_id)
        deliverer.hint(job_id)
        row = await until(database, id_, lambda row: row.end_time is not None)
    expected = await state_changes(ledger, job_id)
    assert receiver.sequences == expected
    assert receiver.ids == [f"{id_}_{sequence}" for sequence in expected]
    last = receiver.accepted[-1]
    assert last["type"] == "fine_tuning_job.state_changed" and last["timestamp"].endswith("Z")
    assert last["data"]["state_changed"]["state"] == "JOB_STATE_SUCCEEDED"
    assert (row.state, row.sequence, row.holder) == ("INTEGRATION_STATE_DONE", expected[-1], "")
    async with database.read() as session:
        tries = (await session.exec(select(DeliveryAttemptRow).order_by(DeliveryAttemptRow.number))).all()
    assert [(each.first_sequence, each.http_status, each.error) for each in tries] == [
        (sequence, 204, "") for sequence in expected
    ]


async def test_a_late_webhook_gets_the_chosen_kinds_of_the_whole_history(
    database: Database,
    ledger: Ledger,
    acceptance: WorkerRequests,
    recorder: Recorder,
    receiver: Receiver,
    secrets: SecretStore,
) -> None:
    job_id = await create(ledger)
    await finish(ledger, acceptance, recorder, job_id)
    id_ = await follow(database, job_id, receiver, "log", "stage_completed")
    async with delivering(database, secrets):
        await until(database, id_, lambda row: row.state == "INTEGRATION_STATE_DONE")
    kinds = [each["type"].rpartition(".")[2] for each in receiver.accepted]
    assert kinds == ["stage_completed", *["log"] * 5, *["stage_completed"] * 3]


@pytest.mark.parametrize("answers", [[500, 503], [0, 0], [302, 404]], ids=["errors", "hangs", "redirects"])
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_failed_request_is_repeated_with_the_same_id(
    database: Database, ledger: Ledger, receiver: Receiver, secrets: SecretStore, answers: list[int]
) -> None:
    """A redirect could lead into the operator's network, so it is a failure too."""
    receiver.answers = list(answers)
    job_id = await create(ledger)
    async with ledger.decide(job_id) as decision:
        lifecycle.cancel(decision)
    id_ = await follow(database, job_id, receiver)
    async with delivering(database, secrets, timeout_seconds=0.2):
        row = await until(database, id_, lambda row: row.state == "INTEGRATION_STATE_DONE")
    first, *_ = expected = await state_changes(ledger, job_id)
    assert receiver.sequences == expected
    assert receiver.ids[:3] == [f"{id_}_{first}"] * 3
    assert row.failures == 0 and row.error == "" and row.attempts == len(expected) + 2


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_receiver_that_was_away_gets_what_it_missed(
    database: Database, ledger: Ledger, secrets: SecretStore
) -> None:
    receiver = Receiver()
    job_id = await create(ledger)
    async with receiving(receiver):
        id_ = await follow(database, job_id, receiver)
    async with delivering(database, secrets) as deliverer:
        row = await until(database, id_, lambda row: row.failures >= 2)
        assert row.state == "INTEGRATION_STATE_RETRYING" and "no answer" in row.error
        async with ledger.decide(job_id) as decision:
            lifecycle.cancel(decision)
        async with receiving(receiver):
            deliverer.hint(job_id)
            await until(database, id_, lambda row: row.state == "INTEGRATION_STATE_DONE")
    assert receiver.sequences == await state_changes(ledger, job_id)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("answers", "tries"), [([500] * 9, 3), ([410], 1)], ids=["errors", "gone"])
async def test_a_webhook_is_given_up_in_the_end(
    database: Database,
    ledger: Ledger,
    receiver: Receiver,
    secrets: SecretStore,
    answers: list[int],
    tries: int,
) -> None:
    """410 says that nobody wants the events any more."""
    receiver.answers = list(answers)
    id_ = await follow(database, await create(ledger), receiver)
    async with delivering(database, secrets, schedule=RetrySchedule(0.01, 0.01, attempts=3)):
        row = await until(database, id_, lambda row: row.end_time is not None)
    assert (row.state, row.failures, len(receiver.ids)) == ("INTEGRATION_STATE_FAILED", tries, tries)
    assert str(answers[0]) in row.error and row.sequence == 0


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_deleted_secret_ends_the_delivery_and_a_retry_continues_it(
    database: Database, ledger: Ledger, receiver: Receiver, secrets: SecretStore
) -> None:
    """Only its owner can set it again, and tries before that change nothing."""
    await secrets.delete("default", "hook")
    id_ = await follow(database, await create(ledger), receiver)
    async with delivering(database, secrets):
        row = await until(database, id_, lambda row: row.end_time is not None)
        assert (row.state, row.failures) == (
            "INTEGRATION_STATE_FAILED",
            1,
        ) and "the secret hook was deleted" in row.error
        await secrets.set("default", "hook", SECRET)
        await retry(database, secrets, id_)
        await receiver.until(lambda: receiver.accepted)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_retry_does_not_wait_for_the_next_try(
    database: Database, ledger: Ledger, receiver: Receiver, secrets: SecretStore
) -> None:
    """The next try can be an hour away."""
    receiver.answers = [500]
    id_ = await follow(database, await create(ledger), receiver)
    async with delivering(database, secrets, schedule=RetrySchedule(3600.0, 3600.0)):
        await until(database, id_, lambda row: row.failures == 1)
        await retry(database, secrets, id_)
        await receiver.until(lambda: receiver.accepted)
        row = await until(database, id_, lambda row: row.state == "INTEGRATION_STATE_ACTIVE")
    assert row.failures == 0 and len(receiver.ids) == 2


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("secret", ["whsec_c2hvcnQ=", "no key"])
async def test_a_secret_that_is_no_key_is_named(
    database: Database, ledger: Ledger, receiver: Receiver, secrets: SecretStore, secret: str
) -> None:
    await secrets.set("default", "hook", secret)
    id_ = await follow(database, await create(ledger), receiver)
    async with delivering(database, secrets):
        row = await until(database, id_, lambda row: row.failures > 0)
        assert "the secret hook" in row.error and "set it" in row.error
        assert not receiver.ids
        await secrets.set("default", "hook", SECRET)
        await receiver.until(lambda: receiver.accepted)


async def test_two_processes_share_deliveries_and_send_nothing_twice(
    database: Database, ledger: Ledger, receiver: Receiver, secrets: SecretStore
) -> None:
    jobs = [await create(ledger) for _ in range(6)]
    ids = [await follow(database, job_id, receiver) for job_id in jobs]
    async with delivering(database, secrets), delivering(database, secrets):
        for job_id in jobs:
            async with ledger.decide(job_id) as decision:
                lifecycle.cancel(decision)
        for id_ in ids:
            await until(database, id_, lambda row: row.end_time is not None)
    assert sorted(receiver.ids) == sorted(set(receiver.ids))
    assert len(receiver.ids) == 2 * len(jobs)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_deleted_integration_ends_its_delivery(
    database: Database, ledger: Ledger, receiver: Receiver, secrets: SecretStore
) -> None:
    receiver.answers = [500] * 1000
    id_ = await follow(database, await create(ledger), receiver)
    async with delivering(database, secrets) as deliverer:
        row = await until(database, id_, lambda row: row.failures > 0)
        async with database.write() as session:
            await session.delete(row)
        _, running = await asyncio.wait([task for _, task in deliverer._loops.values()], timeout=60)
        assert not running


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_killed_process_continues_where_it_was(
    database: Database,
    ledger: Ledger,
    acceptance: WorkerRequests,
    recorder: Recorder,
    receiver: Receiver,
    secrets: SecretStore,
    nats_server: NatsServer,
    tmp_path: Path,
) -> None:
    """It is killed between the answer and its record, so that one event comes again, with the same id."""
    failpoints = tmp_path / "failpoints"
    failpoints.mkdir()
    environment = os.environ | {
        "FTF_HOME": str(tmp_path),
        "FTF_FAILPOINTS": str(failpoints),
        **nats_server.environment("gateway"),
        "FTF_GATEWAY_WEBHOOK_ALLOW": '["127.0.0.1"]',
        "FTF_GATEWAY_DELIVERIES_LEASE_SECONDS": "1",
    }
    job_id = await create(ledger)
    await finish(ledger, acceptance, recorder, job_id)
    expected = await state_changes(ledger, job_id)
    id_ = await follow(database, job_id, receiver)
    (failpoints / "delivery.sent").write_text("kill")
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "gateway.deliveries", env=environment)
        if (failpoints / "delivery.sent").exists():
            assert await process.wait() == -signal.SIGKILL
            assert (await row_of(database, id_)).holder != ""
    await receiver.until(lambda: len(receiver.ids) == 1 + len(expected))
    process.terminate()
    assert await process.wait() == 0
    assert receiver.sequences == [expected[0], *expected]
    assert receiver.ids == [f"{id_}_{sequence}" for sequence in [expected[0], *expected]]


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "https://127.0.0.1/",
        "https://10.1.2.3/",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/",
        "https://[fe80::1%25eth0]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[64:ff9b::a00:1]/",
        "https://[2002:7f00:1::]/",
        "https://0.0.0.0/",
        "https://224.0.0.1/",
        "https://100.64.0.1/",
        "https://localhost/",
        "https://hooks.localhost./",
        "https://2130706433/",
        "https://127.1/",
        "https://0x7f.1/",
    ],
)
def test_addresses_that_are_not_public_are_refused(url: str) -> None:
    """A caller must not reach the operator's network, nor the cloud's metadata, through this system."""
    with pytest.raises(AddressRefused):
        AddressPolicy().check_url(url)


def test_the_operator_allows_hosts_addresses_and_networks() -> None:
    policy = AddressPolicy(["hooks.local:8080", "10.1.0.0/16", "[fd00::/8]:8443"])
    for url in ("http://HOOKS.local:8080/", "http://10.1.2.3/", "https://[fd00::1]:8443/", "https://example.com"):
        policy.check_url(url)
    for url in ("http://hooks.local/", "https://10.2.0.1/", "https://[fd00::1]/"):
        with pytest.raises(AddressRefused):
            policy.check_url(url)
    for wrong in ("10.1.0.0/99", "::1", "a b:c", ""):
        with pytest.raises(ValueError, match="is no"):
            AddressPolicy([wrong])


async def test_a_name_that_resolves_to_a_private_address_is_refused(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kwargs: real("127.0.0.1", *args, **kwargs))
    http = HttpClient(AddressPolicy(), 5.0)
    with pytest.raises(DeliveryFailed, match="resolves to an address that is not public"):
        await http.send("POST", f"https://inside.test:{receiver.port}/hook", headers={})
    assert not receiver.ids
    await http.close()


async def test_a_name_that_changes_its_address_gains_nothing(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: public when it is checked, private when it is connected to. Here every answer is checked."""
    answers = iter(["8.8.8.8", "127.0.0.1"])
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        return real(next(answers, "127.0.0.1") if host == "rebound.test" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    http = HttpClient(AddressPolicy(), 0.2)
    for _ in range(3):
        with pytest.raises(DeliveryFailed):
            await http.send("POST", f"https://rebound.test:{receiver.port}/hook", headers={})
    assert not receiver.ids
    await http.close()
