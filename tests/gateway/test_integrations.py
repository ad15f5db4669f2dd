"""IntegrationService over a real channel, and integrations that a job is created with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from pydantic import SecretStr
from sqlmodel import select
from typer.testing import CliRunner

from chassis.store.artifact_store import ArtifactStore
from engine.catalogue import Catalogue
from finetuneflow.cli.app import build_app
from finetuneflow.v1 import fine_tuning_service_pb2 as job_api
from finetuneflow.v1 import integration_service_pb2 as api
from finetuneflow.v1 import secret_service_pb2 as secret_api
from finetuneflow.v1.fine_tuning_job_spec_pb2 import IntegrationSpec, WebhookSpec
from finetuneflow.v1.fine_tuning_service_pb2_grpc import FineTuningServiceStub
from finetuneflow.v1.integration_pb2 import IntegrationState
from finetuneflow.v1.integration_service_pb2_grpc import (
    IntegrationServiceStub,
    add_IntegrationServiceServicer_to_server,
)
from finetuneflow.v1.secret_service_pb2_grpc import add_SecretServiceServicer_to_server
from finetuneflow.v1.work_pb2 import Node
from gateway.outbound_addresses import AddressPolicy
from gateway.preflights import Preflights
from gateway.secret_store import SecretKeys, SecretStore
from gateway.servicers.fine_tuning import FineTuning, add_to_server
from gateway.servicers.integrations import Integrations
from gateway.servicers.secrets import Secrets
from gateway.servicers.work import WorkMethods
from gateway.sql.database import Database
from gateway.sql.tables import Delivery, DeliveryAttemptRow, UploadedDataset, now
from gateway.work.kinds import FINE_TUNING_JOB
from gateway.work.ledger import Ledger
from tests.gateway.jobs import create
from tests.gateway.serving import refusal, serving
from tests.gateway.webhook_receiver import SECRET

HOOK = IntegrationSpec(webhook=WebhookSpec(url="https://example.com/hook", secret="hook"))


class WithoutNodes:
    """A passthrough for specs that no service is asked about."""

    async def nodes(self) -> list[Node]:
        return []


@pytest.fixture
async def secrets(database: Database, tmp_path: Path) -> SecretStore:
    store = SecretStore(database, SecretKeys(tmp_path / "secrets.key", SecretStr("")))
    await store.set("default", "hook", SECRET)
    await store.set("default", "wandb", "a key of another form")
    return store


@pytest.fixture
async def stub(database: Database, secrets: SecretStore) -> AsyncIterator[Any]:
    servicer = Integrations(database, AddressPolicy(), secrets)
    async with (
        serving(api, "IntegrationService", add_IntegrationServiceServicer_to_server, servicer) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield IntegrationServiceStub(channel)


async def test_an_integration_is_added_listed_and_deleted(stub: Any, database: Database, ledger: Ledger) -> None:
    job_id = await create(ledger)
    request = api.CreateIntegrationRequest(job_id=job_id, spec=HOOK, request_id="once")
    first = (await stub.CreateIntegration(request)).integration
    assert (await stub.CreateIntegration(request)).integration == first
    assert first.state == IntegrationState.INTEGRATION_STATE_PENDING, "no process delivers"
    assert (first.job_id, first.kind, list(first.spec.webhook.kinds)) == (job_id, "webhook", ["state_changed"])
    second = (await stub.CreateIntegration(api.CreateIntegrationRequest(job_id=job_id, spec=HOOK))).integration
    found = (await stub.ListIntegrations(api.ListIntegrationsRequest(job_id=job_id))).integrations
    assert [each.id for each in found] == [first.id, second.id]
    async with database.write() as session:
        session.add(DeliveryAttemptRow(delivery_id=first.id, number=1, time=now(), duration_seconds=0.5))
    await stub.DeleteIntegration(api.DeleteIntegrationRequest(integration_id=first.id))
    for call, wanted in (
        (stub.DeleteIntegration, api.DeleteIntegrationRequest),
        (stub.RetryIntegration, api.RetryIntegrationRequest),
        (stub.ListDeliveryAttempts, api.ListDeliveryAttemptsRequest),
    ):
        refused = await refusal(call(wanted(integration_id=first.id)))
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "INTEGRATION_NOT_FOUND")


async def test_a_failed_integration_is_continued_and_its_tries_are_listed(
    stub: Any, database: Database, ledger: Ledger
) -> None:
    job_id = await create(ledger)
    made = (await stub.CreateIntegration(api.CreateIntegrationRequest(job_id=job_id, spec=HOOK))).integration
    async with database.write() as session:
        row = (await session.exec(select(Delivery))).one()
        row.state, row.failures, row.end_time, row.error = "INTEGRATION_STATE_FAILED", 20, now(), "gone"
        session.add(row)
        await session.flush()
        for number in range(1, 4):
            session.add(
                DeliveryAttemptRow(
                    delivery_id=made.id, number=number, time=now(), duration_seconds=0.5, http_status=500, error="gone"
                )
            )
    request = api.ListDeliveryAttemptsRequest(integration_id=made.id, page_size=2)
    page = await stub.ListDeliveryAttempts(request)
    request.page_token = page.next_page_token
    rest = await stub.ListDeliveryAttempts(request)
    assert [each.number for each in (*page.attempts, *rest.attempts)] == [3, 2, 1]
    assert page.attempts[0].http_status == 500 and not rest.next_page_token
    for _ in range(2):
        again = (await stub.RetryIntegration(api.RetryIntegrationRequest(integration_id=made.id))).integration
        assert (again.state, again.failures) == (IntegrationState.INTEGRATION_STATE_RETRYING, 0)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("spec", "reason", "field"),
    [
        ({"webhook": {"url": "http://example.com", "secret": "hook"}}, "ADDRESS_REFUSED", "spec.webhook.url"),
        ({"mlflow": {"tracking_uri": "https://10.0.0.1"}}, "ADDRESS_REFUSED", "spec.mlflow.tracking_uri"),
        ({"webhook": {"url": "https://example.com", "secret": "none"}}, "SECRET_NOT_FOUND", "spec.webhook.secret"),
        ({"webhook": {"url": "https://me@example.com", "secret": "hook"}}, "INVALID_CONFIG", "spec.webhook.url"),
        ({"webhook": {"url": "https://a.com", "secret": "hook", "kinds": ["logs"]}}, "INVALID_CONFIG", "kinds[0]"),
        ({"mlflow": {"tracking_uri": "https://a.com", "username": "me"}}, "INVALID_CONFIG", "spec.mlflow"),
        ({}, "INVALID_CONFIG", "spec"),
        ({"webhook": {"url": "https://example.com", "secret": "wandb"}}, "INVALID_CONFIG", "spec.webhook.secret"),
        ({"wandb": {}}, "INVALID_CONFIG", "spec.wandb"),
        ({"wandb": {"offline": True, "secret": "wandb"}}, "INVALID_CONFIG", "spec.wandb"),
        ({"wandb": {"secret": "none"}}, "SECRET_NOT_FOUND", "spec.wandb.secret"),
        ({"wandb": {"secret": "wandb", "project": "a/b"}}, "INVALID_CONFIG", "spec.wandb.project"),
        ({"wandb": {"secret": "wandb", "base_url": "http://a.com"}}, "ADDRESS_REFUSED", "spec.wandb.base_url"),
    ],
)
async def test_settings_that_cannot_work_are_refused(
    stub: Any, ledger: Ledger, spec: dict[str, Any], reason: str, field: str
) -> None:
    """Otherwise the owner of the job finds out when nothing arrives."""
    job_id = await create(ledger)
    request = api.CreateIntegrationRequest(job_id=job_id, spec=ParseDict(spec, IntegrationSpec()))
    refused = await refusal(stub.CreateIntegration(request))
    assert refused.reason == reason, refused
    assert refused.fields[0].endswith(field)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_job_has_at_most_sixteen(stub: Any, ledger: Ledger) -> None:
    request = api.CreateIntegrationRequest(job_id=await create(ledger), spec=HOOK)
    for _ in range(16):
        await stub.CreateIntegration(request)
    assert (await refusal(stub.CreateIntegration(request))).reason == "TOO_MANY_INTEGRATIONS"


async def test_a_job_shows_the_integrations_that_it_was_created_with(
    database: Database, ledger: Ledger, stub: Any, tmp_path: Path
) -> None:
    """They are there from the first event on, and go with the job."""
    async with database.write() as session:
        dataset = {"id": "ds_1", "tenant": "default", "display_name": "rows", "filename": "rows.jsonl"}
        session.add(UploadedDataset(**dataset, size_bytes=1, sha256="0" * 64, path="x", create_time=now()))
    methods = WorkMethods(FINE_TUNING_JOB, ledger, None, ArtifactStore(tmp_path.as_uri()))  # type: ignore[arg-type]
    secrets = SecretStore(database, SecretKeys(tmp_path / "secrets.key", SecretStr("")))
    catalogue = Catalogue(tmp_path, {"tiny": tmp_path})
    preflights = Preflights(database, WithoutNodes(), None, catalogue, secrets=secrets)  # type: ignore[arg-type]
    servicer = FineTuning(methods, catalogue, preflights, secrets=secrets)
    async with (
        serving(job_api, "FineTuningService", add_to_server, servicer) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        jobs: Any = FineTuningServiceStub(channel)
        request = job_api.CreateFineTuningJobRequest()
        request.spec.base_model = "tiny"
        request.spec.training_data.add(dataset="ds_1")
        request.spec.integrations.add().tensorboard.SetInParent()
        request.spec.integrations.append(HOOK)
        job = (await jobs.CreateFineTuningJob(request)).fine_tuning_job
        found = (await jobs.GetFineTuningJob(job_api.GetFineTuningJobRequest(job_id=job.id))).fine_tuning_job
        assert sorted(each.kind for each in found.integrations) == ["tensorboard", "webhook"]
        await jobs.CancelFineTuningJob(job_api.CancelFineTuningJobRequest(job_id=job.id))
        await jobs.DeleteFineTuningJob(job_api.DeleteFineTuningJobRequest(job_id=job.id))
        request.spec.integrations[1].webhook.url = "https://localhost.test:1/"
        request.spec.integrations[1].webhook.secret = "other"
        assert (await refusal(jobs.CreateFineTuningJob(request))).fields == ("spec.integrations[1].webhook.secret",)
        request.spec.integrations[1].webhook.secret = "wandb"
        refused = await refusal(jobs.CreateFineTuningJob(request))
        assert "whsec_" in refused.message and refused.fields == ("spec.integrations[1].webhook.secret",)
        request.validate_only = True
        assert await refusal(jobs.CreateFineTuningJob(request)) == refused
    async with database.read() as session:
        assert not (await session.exec(select(Delivery))).all()


async def test_integrations_that_need_a_deleted_secret_are_named(
    stub: Any, database: Database, ledger: Ledger, secrets: SecretStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next delivery is the first that says so."""
    job_id = await create(ledger)
    made = [
        (await stub.CreateIntegration(api.CreateIntegrationRequest(job_id=job_id, spec=HOOK))).integration.id
        for _ in range(2)
    ]
    async with database.write() as session:
        ended = (await session.exec(select(Delivery).where(Delivery.id == made[1]))).one()
        ended.state, ended.end_time = "INTEGRATION_STATE_DONE", now()
        session.add(ended)
    servicer = Secrets(database, secrets)
    async with serving(secret_api, "SecretService", add_SecretServiceServicer_to_server, servicer) as address:
        monkeypatch.setenv("FTF_ADDRESS", address)
        found = [
            await asyncio.to_thread(CliRunner().invoke, build_app(), ["secrets", "delete", name, "--json"])
            for name in ("wandb", "hook")
        ]
    assert [json.loads(each.stdout)["integration_ids"] for each in found] == [[], made[:1]]
    assert not found[0].stderr and f"{made[0]}. To set it again: ftf secrets set hook" in found[1].stderr
