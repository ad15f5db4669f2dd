"""Runs on a real MLflow server, which `make test-long` installs."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1.event_pb2 import ArtifactSaved, ConfigResolved, Eval
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec, IntegrationSpec, MlflowSpec
from gateway.deliveries.deliverer import Deliverer
from gateway.deliveries.delivery import RetrySchedule
from gateway.deliveries.http_client import HttpClient
from gateway.deliveries.services import sink_maker
from gateway.integrations import delivery_of
from gateway.outbound_addresses import AddressPolicy
from gateway.secret_store import SecretKeys, SecretStore
from gateway.sql.database import Database
from gateway.work.ledger import Ledger
from gateway.work.worker_requests import WorkerRequests
from standalone.guard import guarded
from standalone.ports import free_port
from tests.gateway.conftest import Recorder
from tests.gateway.jobs import Worker, create, log_at, running
from tests.gateway.test_deliveries import until

SERVERS = sorted((Path(__file__).parents[2] / ".tools").glob("mlflow-*/bin/mlflow"))

pytestmark = [pytest.mark.long, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]


class MlflowServer:
    """An MLflow server on one port, with SQLite; it can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: asyncio.subprocess.Process | None = None
        self._log: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts it; returns when it answers."""
        arguments = ["server", "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        arguments += ["--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.sqlite'}"]
        arguments += ["--artifacts-destination", str(self._folder / "artifacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._process = await asyncio.create_subprocess_exec(
            *guarded([str(SERVERS[-1]), *arguments]),
            env=environment,
            cwd=self._folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        ready = asyncio.Event()
        self._log = asyncio.create_task(self._read(self._process.stdout, ready))
        async with asyncio.timeout(240):
            await ready.wait()
        assert not self._log.done(), (self._folder / "mlflow.log").read_text()

    async def stop(self) -> None:
        if self._process is not None and self._log is not None:
            self._process.terminate()
            await self._process.wait()
            await self._log
            self._process = None

    async def _read(self, output: asyncio.StreamReader, ready: asyncio.Event) -> None:
        with (self._folder / "mlflow.log").open("ab") as log:
            while line := await output.readline():
                log.write(line)
                log.flush()
                if b"Application startup complete" in line:
                    ready.set()
        ready.set()

    async def ask(self, method: str, message: dict[str, Any] | None = None, **params: str) -> dict[str, Any]:
        url = f"{self.url}/api/2.0/mlflow/{method}"
        async with aiohttp.ClientSession() as session:
            verb = "GET" if message is None else "POST"
            async with session.request(verb, url, json=message, params=params) as answer:
                assert answer.status == 200, await answer.text()
                return dict(await answer.json())


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[MlflowServer]:
    if not SERVERS:
        pytest.skip("MLflow's server is not installed: make test-long")
    folder = tmp_path / "mlflow"
    folder.mkdir()
    server = MlflowServer(folder)
    await server.start()
    yield server
    await server.stop()


async def test_a_run_has_everything_once_although_the_server_was_away(
    database: Database,
    ledger: Ledger,
    acceptance: WorkerRequests,
    recorder: Recorder,
    server: MlflowServer,
    tmp_path: Path,
) -> None:
    """A server that is down for a minute, and a delivery process that starts again, double no point and no run."""
    store = ArtifactStore((tmp_path / "artifacts").as_uri())
    secrets = SecretStore(database, SecretKeys(tmp_path / "secrets.key", SecretStr("")))
    http = HttpClient(AddressPolicy(["127.0.0.1"]), 30.0)

    def deliverer() -> Deliverer:
        make = sink_maker(database, http, secrets, store, tmp_path)
        return Deliverer(database, make, RetrySchedule(0.2, 1.0, attempts=1000))

    spec = FineTuningJobSpec(base_model="tiny", display_name="my run", seed=7)
    job_id = await create(ledger, spec=spec.SerializeToString(), labels={"team": "a"})
    mlflow = MlflowSpec(tracking_uri=server.url, experiment="tests")
    row = delivery_of("default", job_id, IntegrationSpec(mlflow=mlflow))
    async with database.write() as session:
        session.add(row)
    async with running(deliverer().run()):
        worker = Worker(acceptance)
        await worker.claim(recorder.offered[-1])
        await worker.report(ConfigResolved(resolved_spec=spec))
        await worker.complete()
        trainer = Worker(acceptance, "b" * 32)
        await trainer.claim(recorder.offered[-1])
        await trainer.report(*(log_at(step, loss=4.0 - step) for step in (1, 2)))
        await until(database, row.id, lambda row: row.sequence >= trainer.ordinal and not row.error)
    await server.stop()
    broken = log_at(3, loss=1.0)
    broken.grad_norm = math.nan
    async with running(deliverer().run()):
        await trainer.report(broken, Eval(step=3, eval_loss=1.5, perplexity=4.5))
        spec.hyperparameters.per_device_train_batch_size = 2
        await trainer.report(ConfigResolved(resolved_spec=spec))
        await until(database, row.id, lambda row: row.state == "INTEGRATION_STATE_RETRYING")
        await server.start()
        await trainer.complete()
        while recorder.offered[-1].stage != "STAGE_EXPORT":
            evaluator = Worker(acceptance, "c" * 32)
            await evaluator.claim(recorder.offered[-1])
            await evaluator.complete()
        exporter = Worker(acceptance, "d" * 32)
        await exporter.claim(recorder.offered[-1])
        (tmp_path / "report.md").write_text("# Report\n")
        path = exporter.path("report.md")
        stored = store.put_file(tmp_path / "report.md", f"default/{path}")
        kind = {"kind": "export_file", "sha256": stored.sha256, "size_bytes": stored.size_bytes}
        await exporter.report(ArtifactSaved(path=path, media_type="text/markdown", **kind))
        await exporter.complete()
        done = await until(database, row.id, lambda row: row.end_time is not None)
    await http.close()
    assert done.state == "INTEGRATION_STATE_DONE", done.error
    run_id = done.run_url.rpartition("/")[2]
    experiment = (await server.ask("experiments/get-by-name", experiment_name="tests"))["experiment"]["experiment_id"]
    (run,) = (await server.ask("runs/search", {"experiment_ids": [experiment]}))["runs"]
    assert (run["info"]["run_id"], run["info"]["run_name"], run["info"]["status"]) == (run_id, "my run", "FINISHED")
    params = {each["key"]: each["value"] for each in run["data"]["params"]}
    assert params["base_model"] == "tiny" and params["seed"] == "7"
    tags = {each["key"]: each["value"] for each in run["data"]["tags"]}
    assert tags["finetuneflow.job"] == job_id and tags["finetuneflow.label.team"] == "a"
    assert tags["finetuneflow.state"] == "JOB_STATE_SUCCEEDED"
    losses = (await server.ask("metrics/get-history", run_id=run_id, metric_key="loss"))["metrics"]
    assert [(int(each["step"]), each["value"]) for each in losses] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    (evaluated,) = (await server.ask("metrics/get-history", run_id=run_id, metric_key="eval_loss"))["metrics"]
    assert (int(evaluated["step"]), evaluated["value"]) == (3, 1.5)
    files = (await server.ask("artifacts/list", run_id=run_id))["files"]
    assert [each["path"] for each in files] == ["report.md"]
