"""A tenant's limits hold exactly, whatever is created at the same time and at which gateway."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from chassis.bus.event_bus import Bus
from chassis.server.grpc_server import Mount, serve
from chassis.store.artifact_store import ArtifactStore
from engine.catalogue import Catalogue
from engine.config.job import job_config
from engine.config.spec_proto import config_to_spec, spec_to_dict
from finetuneflow.v1 import dataset_service_pb2, export_service_pb2, fine_tuning_service_pb2, tenant_service_pb2
from finetuneflow.v1.dataset_service_pb2_grpc import DatasetServiceStub
from finetuneflow.v1.event_pb2 import ArtifactSaved, CheckpointSaved, ConfigResolved
from finetuneflow.v1.export_service_pb2_grpc import ExportServiceStub
from finetuneflow.v1.fine_tuning_job_pb2 import JobState
from finetuneflow.v1.fine_tuning_job_spec_pb2 import DataSource, FineTuningJobSpec
from finetuneflow.v1.fine_tuning_service_pb2_grpc import FineTuningServiceStub
from finetuneflow.v1.tenant_pb2 import Tenant, TenantLimits
from finetuneflow.v1.tenant_service_pb2_grpc import TenantServiceStub, add_TenantServiceServicer_to_server
from gateway.access.interceptor import OpenInterceptor
from gateway.passthrough import Passthrough
from gateway.quotas import DefaultLimits, Quotas
from gateway.servicers import datasets, fine_tuning, results
from gateway.servicers.tenants import Tenants
from gateway.servicers.work import WorkMethods
from gateway.sql.database import Database
from gateway.sql.tables import Attempt, UploadedDataset, now
from gateway.uploads import UploadLimits
from gateway.work.kinds import EXPORT, FINE_TUNING_JOB
from gateway.work.ledger import Ledger
from gateway.work.worker_requests import WorkerRequests
from tests.fakes.planning import NoTrainers
from tests.gateway.conftest import Recorder
from tests.gateway.jobs import Worker, attempts_of
from tests.gateway.serving import Refusal, refusal

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
DEFAULTS = DefaultLimits(max_live_jobs=1000, max_datasets=10_000, max_stored_bytes=10_000)
AT_ONCE = 50


class Gateway:
    """A real server with the services that create."""

    def __init__(self, address: str, ledger: Ledger, recorder: Recorder) -> None:
        self.channel = grpc.aio.insecure_channel(address)
        self.jobs: Any = FineTuningServiceStub(self.channel)
        self.exports: Any = ExportServiceStub(self.channel)
        self.datasets: Any = DatasetServiceStub(self.channel)
        self.tenants: Any = TenantServiceStub(self.channel)
        self.ledger = ledger
        self._recorder = recorder
        self._acceptance = WorkerRequests(ledger, NoTrainers())

    async def limit(self, **limits: int) -> Tenant:
        request = tenant_service_pb2.UpdateTenantRequest(name="default", limits=TenantLimits(**limits))
        tenant: Tenant = (await self.tenants.UpdateTenant(request)).tenant
        return tenant

    def create(self) -> Any:
        spec = FineTuningJobSpec(base_model="smollm2-135m", training_data=[DataSource(dataset="ds_1")])
        return self.jobs.CreateFineTuningJob(fine_tuning_service_pb2.CreateFineTuningJobRequest(spec=spec))

    def cancel(self, job_id: str) -> Any:
        return self.jobs.CancelFineTuningJob(fine_tuning_service_pb2.CancelFineTuningJobRequest(job_id=job_id))

    def upload(self, data: bytes, **header: Any) -> Any:
        message = dataset_service_pb2.UploadDatasetRequest
        first = message(header=dataset_service_pb2.UploadDatasetHeader(filename="rows.jsonl", **header))
        return self.datasets.UploadDataset(iter([first, message(chunk=data)]))

    async def worker(self, job_id: str) -> Worker:
        """Claims the job's open attempt."""
        (attempt,) = [each for each in await attempts_of(self.ledger, job_id) if each.state == "READY"]
        worker = Worker(self._acceptance)
        assert (await worker.claim(attempt)).HasField("assignment")
        return worker

    async def in_training(self, *, gpus: int = 0) -> tuple[str, Worker]:
        job_id = (await self.create()).fine_tuning_job.id
        preflight = await self.worker(job_id)
        asked = FineTuningJobSpec(base_model="smollm2-135m", training_data=[DataSource(dataset="ds_1")])
        asked.resources.gpus = gpus
        resolved = config_to_spec(job_config(spec_to_dict(asked)))
        await preflight.report(ConfigResolved(resolved_spec=resolved))
        await preflight.complete()
        return job_id, await self.worker(job_id)


@pytest.fixture
async def gateways(
    request: pytest.FixtureRequest, database: Database, recorder: Recorder, tmp_path: Path, bus: Bus
) -> AsyncIterator[list[Gateway]]:
    """On PostgreSQL they share nothing but the server."""
    second = database if database.is_sqlite else await Database.open(request.getfixturevalue("postgres").url)
    store = ArtifactStore((tmp_path / "artifacts").as_uri())
    catalogue, quotas = Catalogue(tmp_path), Quotas(DEFAULTS)
    async with database.write() as session:
        values = {"display_name": "rows", "filename": "rows.jsonl", "sha256": "", "path": "datasets/ds_1/rows.jsonl"}
        session.add(UploadedDataset(id="ds_1", tenant="default", size_bytes=100, create_time=now(), **values))
    started, servers = [], []
    for each in (database, second):
        ledger = Ledger(each, recorder.publish, recorder.offer, recorder.discard)

        def methods(kind: Any, ledger: Ledger = ledger) -> WorkMethods:
            return WorkMethods(kind, ledger, None, store, quotas)  # type: ignore[arg-type]

        mounts = [
            Mount(
                fine_tuning_service_pb2.DESCRIPTOR.services_by_name["FineTuningService"],
                fine_tuning.add_to_server,
                fine_tuning.FineTuning(methods(FINE_TUNING_JOB), catalogue, None),  # type: ignore[arg-type]
            ),
            Mount(
                export_service_pb2.DESCRIPTOR.services_by_name["ExportService"],
                results.add_exports_to_server,
                results.Exports(methods(EXPORT), catalogue),
            ),
            Mount(
                dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"],
                datasets.add_to_server,
                datasets.Datasets(each, store, UploadLimits(), Passthrough(bus), quotas),
            ),
            Mount(
                tenant_service_pb2.DESCRIPTOR.services_by_name["TenantService"],
                add_TenantServiceServicer_to_server,
                Tenants(each),
            ),
        ]
        servers.append(await serve(*mounts, listen="127.0.0.1:0", interceptors=[OpenInterceptor()]))
        started.append(Gateway(servers[-1].address, ledger, recorder))
    yield started
    for gateway, server in zip(started, servers, strict=True):
        await gateway.channel.close()
        await server.stop(0)
    if second is not database:
        await second.close()


async def outcomes(calls: list[Any]) -> tuple[list[Any], list[Refusal]]:
    """Returns the answers and the refusals of calls that are made at the same time."""

    async def outcome(call: Any) -> Any:
        try:
            return await refusal(call)
        except AssertionError:
            return await call

    found = await asyncio.gather(*map(outcome, calls))
    return [each for each in found if not isinstance(each, Refusal)], [e for e in found if isinstance(e, Refusal)]


async def test_jobs_created_at_once_reach_their_limit_exactly(gateways: list[Gateway]) -> None:
    """A script that starts a sweep twice would otherwise fill the queue of all, or lose jobs that it may have."""
    a, b = gateways
    await a.limit(max_live_jobs=20)
    made, refused = await outcomes([(a, b)[number % 2].create() for number in range(AT_ONCE)])
    assert (len(made), len(refused)) == (20, AT_ONCE - 20)
    assert {(each.code, each.reason, each.metadata["limit"], each.metadata["used"]) for each in refused} == {
        (EXHAUSTED, "TOO_MANY_JOBS", "20", "20")
    }
    assert "max_live_jobs" in refused[0].message
    # One that has ended makes room for one.
    await b.cancel(made[0].fine_tuning_job.id)
    await a.create()
    assert (await refusal(b.create())).reason == "TOO_MANY_JOBS"


async def test_creations_decisions_and_deletions_at_once_do_not_block_each_other(gateways: list[Gateway]) -> None:
    """Transactions that lock rows in different orders would end each other: creations that fail for no reason."""
    a, b = gateways
    job_id, training = await a.in_training()
    await training.complete()
    created = [(await a.create()).fine_tuning_job.id for _ in range(10)]
    request = export_service_pb2.CreateExportRequest(model=f"ft:{job_id}")
    calls = [each for _ in range(10) for each in (a.create(), b.exports.CreateExport(request), b.upload(b"{}\n"))]
    calls += [(a, b)[number % 2].cancel(each) for number, each in enumerate(created)]
    made, refused = await asyncio.wait_for(outcomes(calls), 60)
    assert (len(made), refused) == (40, [])


async def test_datasets_uploaded_at_once_reach_their_limits_exactly(gateways: list[Gateway]) -> None:
    a, b = gateways
    await a.limit(max_datasets=6)
    made, refused = await outcomes([(a, b)[number % 2].upload(b"{}\n") for number in range(20)])
    assert (len(made), {each.reason for each in refused}) == (5, {"TOO_MANY_DATASETS"})
    await a.limit(max_stored_bytes=100 + 15 + 2 * 50)
    made, refused = await outcomes([(a, b)[number % 2].upload(b"x" * 49 + b"\n") for number in range(20)])
    assert (len(made), {each.reason for each in refused}) == (2, {"STORAGE_LIMIT"})


async def test_stored_bytes_are_datasets_artifacts_and_kept_checkpoints(gateways: list[Gateway]) -> None:
    a, _ = gateways
    _, worker = await a.in_training()
    path = worker.path("checkpoint-1")
    saved = CheckpointSaved(path=path, step=1, manifest_sha256="0" * 64, size_bytes=4_000)
    await worker.report(saved, ArtifactSaved(path=worker.path("log.txt"), size_bytes=5_800, sha256="0" * 64))
    # 100 of the fixture, 9,800 of the training.
    await a.create()
    assert (await a.upload(b"x" * 99 + b"\n")).dataset.id
    for refused in (
        await refusal(a.create()),
        await refusal(a.upload(b"x\n")),
        # Refused before its bytes are sent.
        await refusal(a.upload(b"", size_bytes=2)),
    ):
        assert (refused.code, refused.reason, refused.metadata["limit"], refused.metadata["used"]) == (
            EXHAUSTED,
            "STORAGE_LIMIT",
            "10000",
            "10000",
        )
    # A repeated call is no new upload, and a limit of the tenant takes precedence over the default.
    await a.limit(max_stored_bytes=20_000)
    await a.create()


async def test_gpu_time_is_counted_from_claim_to_end_over_a_day(gateways: list[Gateway]) -> None:
    """A tenant could otherwise train day and night on what all have to share."""
    a, _ = gateways
    job_id, training = await a.in_training(gpus=1)
    await a.limit(max_gpu_seconds_per_day=3600)
    await a.create()

    async def claimed(seconds_ago: int) -> None:
        async with a.ledger.database.write() as session:
            attempt = await session.get_one(Attempt, (job_id, "STAGE_TRAINING", 1))
            assert attempt.gpus == 1
            attempt.claim_time = now() - seconds_ago * 1_000_000
            session.add(attempt)

    await claimed(3700)
    refused = await refusal(a.create())
    assert (refused.code, refused.reason, refused.metadata["limit"]) == (EXHAUSTED, "GPU_TIME_LIMIT", "3600")
    assert 3700 <= int(refused.metadata["used"]) < 3800
    await training.complete()
    assert (await refusal(a.create())).reason == "GPU_TIME_LIMIT"
    async with a.ledger.database.write() as session:
        attempt = await session.get_one(Attempt, (job_id, "STAGE_TRAINING", 1))
        attempt.claim_time = now() - 30 * 3600 * 1_000_000
        attempt.end_time = now() - (24 * 3600 - 60) * 1_000_000
        session.add(attempt)
    # 60 seconds of it were within the last 24 hours.
    await a.create()
    await a.limit(max_gpu_seconds_per_day=50)
    assert (await refusal(a.create())).metadata["used"] in ("59", "60")


async def test_operator_sets_and_removes_limits(gateways: list[Gateway]) -> None:
    a, _ = gateways
    assert (await a.limit(max_live_jobs=0)).limits == TenantLimits(max_live_jobs=0)
    assert (await refusal(a.create())).metadata["limit"] == "0"
    request = tenant_service_pb2.UpdateTenantRequest(name="default", display_name="Us")
    assert (await a.tenants.UpdateTenant(request)).tenant.limits == TenantLimits(max_live_jobs=0), "unchanged"
    assert (await a.limit()).limits == TenantLimits()
    assert (await a.create()).fine_tuning_job.state == JobState.JOB_STATE_VALIDATING
    negative = tenant_service_pb2.UpdateTenantRequest(name="default", limits=TenantLimits(max_datasets=-1))
    refused = await refusal(a.tenants.UpdateTenant(negative))
    assert (refused.reason, refused.fields) == ("INVALID_REQUEST", ("limits.max_datasets",))
