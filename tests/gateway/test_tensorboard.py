"""Event files of TensorBoard, read by TensorBoard's own reader."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlmodel import select
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1.event_pb2 import Eval, Restored
from finetuneflow.v1.fine_tuning_job_spec_pb2 import IntegrationSpec, TensorboardSpec
from gateway.deliveries.deliverer import Deliverer
from gateway.deliveries.delivery import RetrySchedule
from gateway.deliveries.http_client import HttpClient
from gateway.deliveries.services import sink_maker
from gateway.integrations import delivery_of
from gateway.outbound_addresses import AddressPolicy
from gateway.secret_store import SecretKeys, SecretStore
from gateway.sql.database import Database
from gateway.sql.tables import SavedArtifact
from gateway.work import lifecycle
from gateway.work.ledger import Ledger
from gateway.work.worker_requests import WorkerRequests
from tests.gateway.conftest import Recorder
from tests.gateway.jobs import Worker, create, log_at, running
from tests.gateway.test_deliveries import until

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    (file,) = folder.rglob("*tfevents*")
    read = EventAccumulator(str(file.parent), size_guidance={"scalars": 0})
    read.Reload()
    return [(point.step, round(point.value, 4)) for point in read.Scalars(name)]


async def test_curves_are_live_and_whole_after_a_restart(
    database: Database, ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder, tmp_path: Path
) -> None:
    """Steps that a second attempt trains again show one point each; a restart of the process doubles nothing."""
    folder, store = tmp_path / "tensorboard", ArtifactStore((tmp_path / "artifacts").as_uri())
    secrets = SecretStore(database, SecretKeys(tmp_path / "secrets.key", SecretStr("")))
    http = HttpClient(AddressPolicy(), 5.0)

    def deliverer() -> Deliverer:
        return Deliverer(database, sink_maker(database, http, secrets, store, folder), RetrySchedule(0.02))

    job_id = await create(ledger)
    first = Worker(acceptance)
    await first.claim(recorder.offered[-1])
    await first.complete()
    row = delivery_of("default", job_id, IntegrationSpec(tensorboard=TensorboardSpec()))
    async with database.write() as session:
        session.add(row)
    trainer = Worker(acceptance, "b" * 32)
    await trainer.claim(recorder.offered[-1])
    async with running(deliverer().run()):
        await trainer.report(*(log_at(step, loss=4.0 - step) for step in (1, 2, 3)))
        found = await until(database, row.id, lambda row: row.sequence > 0)
        assert points(folder, "loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
        assert found.run_name == f"default/{job_id}/{row.id}"
    await trainer.fail()
    again = Worker(acceptance, "c" * 32)
    await again.claim(recorder.offered[-1])
    nan = log_at(3, loss=0.5)
    nan.grad_norm = math.nan
    await again.report(Restored(checkpoint_step=1, first_step=2), log_at(2, loss=0.75), nan)
    await again.report(Eval(step=3, eval_loss=1.5, perplexity=4.5, extras={"accuracy": 0.25}))
    async with ledger.decide(job_id) as decision:
        lifecycle.cancel(decision)
    await again.report()
    await again.fail()
    async with running(deliverer().run()):
        done = await until(database, row.id, lambda row: row.end_time is not None)
    assert done.state == "INTEGRATION_STATE_DONE"
    assert points(folder, "loss") == [(1, 3.0), (2, 0.75), (3, 0.5)]
    assert points(folder, "eval_loss") == [(3, 1.5)] and points(folder, "eval_accuracy") == [(3, 0.25)]
    async with database.read() as session:
        (artifact,) = (await session.exec(select(SavedArtifact).where(SavedArtifact.kind == "tensorboard"))).all()
    store.get_file(f"default/{artifact.path}", tmp_path / "copy" / artifact.path.rpartition("/")[2], artifact.sha256)
    assert points(tmp_path / "copy", "loss") == [(1, 3.0), (2, 0.75), (3, 0.5)]
    await http.close()
