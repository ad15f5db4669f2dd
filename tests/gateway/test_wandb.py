"""Runs at a stand-in of Weights & Biases' server."""

from __future__ import annotations

import asyncio
import json
import math
import os
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlmodel import select

from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1.event_pb2 import ConfigResolved, Eval, Restored
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec, IntegrationSpec, WandbSpec, WebhookSpec
from gateway.deliveries.deliverer import Deliverer
from gateway.deliveries.delivery import RetrySchedule
from gateway.deliveries.http_client import HttpClient
from gateway.deliveries.services import sink_maker
from gateway.deliveries.wandb_run import KINDS
from gateway.integrations import delivery_of
from gateway.outbound_addresses import AddressPolicy
from gateway.secret_store import SecretKeys, SecretStore
from gateway.sql.database import Database
from gateway.sql.tables import Delivery, SavedArtifact
from gateway.work import lifecycle
from gateway.work.ledger import Ledger
from gateway.work.worker_requests import WorkerRequests
from standalone.guard import guarded
from tests.gateway.conftest import Recorder
from tests.gateway.jobs import Worker, create, events_of, log_at, running
from tests.gateway.test_deliveries import FAST, delivering, finish, until
from tests.gateway.wandb_server import ENTITY, KEY, Run, WandbServer, serving_wandb

LIBRARIES = sorted((Path(__file__).parents[2] / ".tools").glob("wandb-*/bin"))

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
async def server() -> AsyncIterator[WandbServer]:
    async with serving_wandb(WandbServer()) as server:
        yield server


@pytest.fixture
async def secrets(database: Database, tmp_path: Path) -> SecretStore:
    store = SecretStore(database, SecretKeys(tmp_path / "secrets.key", SecretStr("")))
    await store.set("default", "wandb", KEY)
    return store


async def follow(database: Database, job_id: str, server: WandbServer, **settings: str) -> Delivery:
    spec = WandbSpec(**{"project": "tests", "secret": "wandb", "base_url": server.url, **settings})  # type: ignore[arg-type]
    row = delivery_of("default", job_id, IntegrationSpec(wandb=spec))
    async with database.write() as session:
        session.add(row)
    return row


def run_of(server: WandbServer, row: Delivery, project: str = "tests") -> Run:
    return server.runs[ENTITY, project, row.id]


async def delivered(database: Database, ledger: Ledger, row: Delivery) -> Delivery:
    """Waits until the run has the job's events so far."""
    events = await events_of(ledger, row.work_id)
    last = max(event.sequence for event in events if event.WhichOneof("payload") in KINDS)
    return await until(database, row.id, lambda row: row.sequence >= last and not row.error)


@asynccontextmanager
async def training(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder, spec: FineTuningJobSpec
) -> AsyncIterator[tuple[str, Worker]]:
    """A job whose training has been claimed; then it is cancelled."""
    job_id = await create(ledger, spec=spec.SerializeToString(), labels={"team": "a"})
    preflight = Worker(acceptance)
    await preflight.claim(recorder.offered[-1])
    await preflight.report(ConfigResolved(resolved_spec=spec))
    await preflight.complete()
    trainer = Worker(acceptance, "b" * 32)
    await trainer.claim(recorder.offered[-1])
    yield job_id, trainer


async def cancel(ledger: Ledger, job_id: str, trainer: Worker) -> None:
    async with ledger.decide(job_id) as decision:
        lifecycle.cancel(decision)
    await trainer.report()
    await trainer.fail()


async def test_a_run_has_everything_once_although_the_server_was_away(
    database: Database,
    ledger: Ledger,
    acceptance: WorkerRequests,
    recorder: Recorder,
    secrets: SecretStore,
) -> None:
    """Lost answers, errors, an outage and a new delivery process double no point and no run."""
    server = WandbServer()
    spec = FineTuningJobSpec(base_model="tiny", display_name="my run", seed=7)
    spec.integrations.append(IntegrationSpec(webhook=WebhookSpec(url="https://example.com/TOKEN", secret="hook")))
    async with training(ledger, acceptance, recorder, spec) as (job_id, trainer):
        async with serving_wandb(server):
            row = await follow(database, job_id, server)
            async with delivering(database, secrets):
                await trainer.report(*(log_at(step, loss=4.0 - step) for step in (1, 2)))
                shown = await delivered(database, ledger, row)
        assert (shown.run_name, shown.run_url) == ("my run", f"{server.url}/{ENTITY}/tests/runs/{row.id}")
        assert run_of(server, row).curve("loss") == [(1, 3.0), (2, 2.0)]
        broken = log_at(3, loss=1.0)
        broken.grad_norm = math.nan
        async with delivering(database, secrets):
            await trainer.report(broken, Eval(step=3, eval_loss=1.5, perplexity=4.5))
            await until(database, row.id, lambda row: row.failures >= 2)
            server.answers = [500, 200, 0, 429, 200, 0]
            async with serving_wandb(server):
                await until(database, row.id, lambda row: not row.failures)
                server.answers = [503, 0, 409]
                await trainer.report(Restored(checkpoint_step=2, first_step=3), log_at(3, loss=0.5))
                await trainer.complete()
                await finish(ledger, acceptance, recorder, job_id)
                done = await until(database, row.id, lambda row: row.end_time is not None)
    assert (done.state, done.error) == ("INTEGRATION_STATE_DONE", "")
    assert list(server.runs) == [(ENTITY, "tests", row.id)]
    run = run_of(server, row)
    assert (run.display_name, run.tags, run.state) == ("my run", ["team:a"], "finished")
    # A step that was trained again has a second point: no line is ever taken back.
    assert run.curve("loss") == [(1, 3.0), (2, 2.0), (3, 1.0), (3, 0.5)]
    assert run.curve("eval_loss") == [(3, 1.5)]
    assert [line["_step"] for line in run.history] == [0, 1, 2, 3, 4]
    assert math.isnan(run.history[2]["grad_norm"])
    config = {name: entry["value"] for name, entry in run.config.items()}
    assert (config["base_model"], config["seed"]) == ("tiny", 7)
    assert config["finetuneflow"] == {"job_id": job_id, "labels": {"team": "a"}}
    assert "TOKEN" not in json.dumps(run.config), "addresses of other services stay here"
    axes = {metric["1"]: metric.get("5") for metric in config["_wandb"]["m"]}
    assert axes["global_step"] is None and axes["loss"] == axes["eval_loss"] == 1
    assert run.summary["loss"] == 0.5 and run.summary["finetuneflow"]["state"] == "JOB_STATE_SUCCEEDED"


async def test_a_late_run_gets_the_whole_history(
    database: Database,
    ledger: Ledger,
    acceptance: WorkerRequests,
    recorder: Recorder,
    server: WandbServer,
    secrets: SecretStore,
) -> None:
    """More lines than a request takes, in a project and under a name of the caller's choice."""
    async with training(ledger, acceptance, recorder, FineTuningJobSpec(base_model="tiny")) as (job_id, trainer):
        await trainer.report(*(log_at(step) for step in range(1, 61)))
        await trainer.report(*(log_at(step) for step in range(61, 121)))
        await cancel(ledger, job_id, trainer)
    row = await follow(database, job_id, server, project="my project", run_name="late", entity=ENTITY)
    async with delivering(database, secrets):
        done = await until(database, row.id, lambda row: row.end_time is not None)
    assert done.run_url == f"{server.url}/{ENTITY}/my%20project/runs/{row.id}"
    run = run_of(server, row, "my project")
    assert [step for step, _ in run.curve("loss")] == list(range(1, 121))
    assert (run.display_name, run.state) == ("late", "killed")
    assert run.config["base_model"] == {"value": "tiny"}


async def test_a_server_that_has_lost_lines_gets_them_again(
    database: Database,
    ledger: Ledger,
    acceptance: WorkerRequests,
    recorder: Recorder,
    server: WandbServer,
    secrets: SecretStore,
) -> None:
    """Such as one of the operator's own that was restored from a backup."""
    async with training(ledger, acceptance, recorder, FineTuningJobSpec(base_model="tiny")) as (job_id, trainer):
        row = await follow(database, job_id, server)
        await trainer.report(*(log_at(step) for step in (1, 2, 3)))
        async with delivering(database, secrets):
            await delivered(database, ledger, row)
        server.runs.clear()
        async with delivering(database, secrets):
            await trainer.report(log_at(4))
            await cancel(ledger, job_id, trainer)
            await until(database, row.id, lambda row: row.end_time is not None)
    assert [step for step, _ in run_of(server, row).curve("loss")] == [1, 2, 3, 4]
    assert run_of(server, row).config["base_model"] == {"value": "tiny"}


@pytest.mark.parametrize(
    ("status", "advice"),
    [(401, "the secret wandb is no valid API key"), (403, "may not write to"), (404, "correct entity or base_url")],
)
async def test_a_refusal_ends_it_and_says_what_to_change(
    database: Database, ledger: Ledger, server: WandbServer, secrets: SecretStore, status: int, advice: str
) -> None:
    """Further tries with a wrong key could lock the account."""
    if status == 401:
        await secrets.set("default", "wandb", "of another")
    else:
        server.answers = [status]
    job_id = await create(ledger)
    row = await follow(database, job_id, server)
    async with delivering(database, secrets) as deliverer:
        failed = await until(database, row.id, lambda row: row.end_time is not None)
        assert (failed.state, failed.failures) == ("INTEGRATION_STATE_FAILED", 1)
        assert advice in failed.error and str(status) in failed.error and KEY not in failed.error
        await secrets.set("default", "wandb", KEY)
        async with database.write() as session:
            failed.state, failed.failures, failed.end_time = "INTEGRATION_STATE_ACTIVE", 0, None
            session.add(failed)
        deliverer.hint(job_id)
        await until(database, row.id, lambda row: row.run_url != "" and row.sequence > 0)


@pytest.mark.parametrize("before_it_began", [True, False])
async def test_a_run_that_was_deleted_is_not_made_again(
    database: Database,
    ledger: Ledger,
    acceptance: WorkerRequests,
    recorder: Recorder,
    server: WandbServer,
    secrets: SecretStore,
    before_it_began: bool,
) -> None:
    async with training(ledger, acceptance, recorder, FineTuningJobSpec(base_model="tiny")) as (job_id, trainer):
        row = await follow(database, job_id, server)
        async with delivering(database, secrets) as deliverer:
            if not before_it_began:
                await trainer.report(log_at(1))
                deliverer.hint(job_id)
            await delivered(database, ledger, row)
            server.delete(row.id)
            await trainer.report(log_at(2))
            deliverer.hint(job_id)
            failed = await until(database, row.id, lambda row: row.end_time is not None)
    assert "was deleted; add another integration" in failed.error and failed.state == "INTEGRATION_STATE_FAILED"


async def test_a_waiting_job_is_shown_as_running(
    database: Database,
    ledger: Ledger,
    server: WandbServer,
    secrets: SecretStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that is silent for some minutes is taken for crashed. A sign of life that fails is not the end."""
    monkeypatch.setattr("gateway.deliveries.wandb.Wandb.idle_seconds", 0.05)
    row = await follow(database, await create(ledger), server)
    async with delivering(database, secrets, schedule=RetrySchedule(0.01, 0.01, attempts=3)):
        await server.until(lambda: server.heartbeats >= 2)
        for _ in range(3):
            server.answers = [500]
            await server.until(lambda: not server.answers)
            server.heartbeats = 0
            await server.until(lambda: server.heartbeats)
        healthy = await until(database, row.id, lambda row: row.failures == 0)
    assert (healthy.state, healthy.error) == ("INTEGRATION_STATE_ACTIVE", "")


def records_of(data: bytes) -> list[bytes]:
    """Reads a log of LevelDB with the header of Weights & Biases."""
    assert data[:7] == b":W&B\xe1\xbe\x00"
    records: list[bytes] = []
    parts: list[bytes] = []
    position = 7
    while position < len(data):
        if (room := 32768 - position % 32768) < 7:
            assert not any(data[position : position + room])
            position += room
            continue
        checksum, length, kind = struct.unpack("<IHB", data[position : position + 7])
        part = data[position + 7 : position + 7 + length]
        assert len(part) == length <= room - 7 and zlib.crc32(bytes([kind]) + part) == checksum
        assert (kind in (2, 1)) == (not parts), "a record begins where none is open"
        parts.append(part)
        position += 7 + length
        if kind in (1, 4):
            records.append(b"".join(parts))
            parts = []
    assert not parts
    return records


def fields_of(message: bytes) -> list[tuple[int, Any]]:
    """Returns the fields of a message of protobuf: number and value."""
    fields, position = [], 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        tag = varint()
        value: Any = varint()
        if tag & 7 == 2:
            value, position = message[position : position + value], position + value
        fields.append((tag >> 3, value))
    return fields


def items_of(message: bytes) -> dict[str, Any]:
    items = [dict(fields_of(value)) for number, value in fields_of(message) if number == 1]
    return {item[1].decode(): json.loads(item[16]) for item in items}


async def offline_run(
    database: Database,
    ledger: Ledger,
    acceptance: WorkerRequests,
    recorder: Recorder,
    secrets: SecretStore,
    folder: Path,
) -> tuple[str, Path]:
    """Returns the integration and the artifact of a job of 1,000 steps that has failed."""
    spec = FineTuningJobSpec(base_model="tiny", display_name="my run", seed=7)
    wandb = WandbSpec(project="tests", entity="them", offline=True)
    http, store = HttpClient(AddressPolicy(), 5.0), ArtifactStore((folder / "artifacts").as_uri())
    async with training(ledger, acceptance, recorder, spec) as (job_id, trainer):
        row = delivery_of("default", job_id, IntegrationSpec(wandb=wandb))
        async with database.write() as session:
            session.add(row)
        for start in range(1, 1001, 50):
            await trainer.report(*(log_at(step, loss=1 / step) for step in range(start, start + 50)))
        broken = log_at(1001)
        broken.grad_norm = math.nan
        await trainer.report(broken, Eval(step=1001, eval_loss=1.5, perplexity=4.5))
        await trainer.fail(reason="BAD_DATA", fault="FAULT_USER_ERROR")
        deliverer = Deliverer(database, sink_maker(database, http, secrets, store, folder), FAST)
        async with running(deliverer.run()):
            done = await until(database, row.id, lambda row: row.end_time is not None)
    await http.close()
    assert (done.state, done.error, done.run_name) == ("INTEGRATION_STATE_DONE", "", "my run")
    async with database.read() as session:
        (artifact,) = (await session.exec(select(SavedArtifact).where(SavedArtifact.kind == "wandb"))).all()
    assert artifact.name == f"integrations/offline-run-{row.id}/run-{row.id}.wandb"
    path = folder / artifact.name
    store.get_file(f"default/{artifact.path}", path, artifact.sha256)
    return row.id, path


async def test_an_offline_run_is_a_file_with_the_whole_history(
    database: Database,
    ledger: Ledger,
    acceptance: WorkerRequests,
    recorder: Recorder,
    secrets: SecretStore,
    tmp_path: Path,
) -> None:
    """For machines without a connection. The file has several blocks of the format, whose records cross their ends."""
    run_id, path = await offline_run(database, ledger, acceptance, recorder, secrets, tmp_path)
    records = [dict(fields_of(record)) for record in records_of(path.read_bytes())]
    assert path.stat().st_size > 3 * 32768
    assert [record[1] for record in records] == list(range(1, len(records) + 1))
    run = dict(fields_of(records[1][17]))
    assert [run[number].decode() for number in (1, 2, 3, 8, 10)] == [run_id, "them", "tests", "my run", "team:a"]
    assert items_of(run[4])["base_model"] == "tiny"
    history = [items_of(record[2]) for record in records if 2 in record]
    assert [line["global_step"] for line in history] == [*range(1, 1002), 1001]
    assert [line["_step"] for line in history] == list(range(1002))
    assert history[1]["loss"] == 0.5 and math.isnan(history[-2]["grad_norm"]) and history[-1]["eval_loss"] == 1.5
    assert items_of(records[-2][3])["finetuneflow"]["state"] == "JOB_STATE_FAILED"
    assert dict(fields_of(records[-1][18]))[1] == 1, "the exit code of a failure"


@pytest.mark.long
async def test_the_library_uploads_the_file_of_an_offline_run(
    database: Database,
    ledger: Ledger,
    acceptance: WorkerRequests,
    recorder: Recorder,
    server: WandbServer,
    secrets: SecretStore,
    tmp_path: Path,
) -> None:
    """`wandb sync` reads the file, and sends to the server what an online run would have sent."""
    run_id, path = await offline_run(database, ledger, acceptance, recorder, secrets, tmp_path)
    await library(server, tmp_path, "sync", str(path.parent))
    run = server.runs["them", "tests", run_id]
    assert (run.display_name, run.tags, run.state) == ("my run", ["team:a"], "failed")
    assert [step for step, _ in run.curve("loss")] == list(range(1, 1002))
    assert run.curve("eval_loss") == [(1001, 1.5)] and run.config["seed"] == {"value": 7}
    metrics = run.config["_wandb"]["value"]["m"]
    (loss,) = [metric for metric in metrics if metric.get("1") == "loss"]
    assert metrics[loss["5"] - 1]["1"] == "global_step", "the axis of the curve"
    assert run.summary["finetuneflow"]["state"] == "JOB_STATE_FAILED"


@pytest.mark.long
async def test_the_library_goes_on_with_a_run(
    database: Database,
    ledger: Ledger,
    acceptance: WorkerRequests,
    recorder: Recorder,
    server: WandbServer,
    secrets: SecretStore,
    tmp_path: Path,
) -> None:
    """The server of these tests understands the library's own requests, and the library what this system has sent."""
    async with training(ledger, acceptance, recorder, FineTuningJobSpec(base_model="tiny", seed=7)) as (
        job_id,
        trainer,
    ):
        row = await follow(database, job_id, server)
        await trainer.report(log_at(1), log_at(2))
        await cancel(ledger, job_id, trainer)
        async with delivering(database, secrets):
            await until(database, row.id, lambda row: row.end_time is not None)
    script = tmp_path / "resume.py"
    script.write_text(
        "import wandb\n"
        f"run = wandb.init(project='tests', id={row.id!r}, resume='must')\n"
        "run.log({'loss': 0.25, 'global_step': 3})\n"
        "run.finish()\n"
    )
    await library(server, tmp_path, str(script), program="python")
    run = run_of(server, row)
    assert [step for step, _ in run.curve("loss")] == [1, 2, 3]
    assert run.config["seed"] == {"value": 7} and run.state == "finished"


async def library(server: WandbServer, folder: Path, *arguments: str, program: str = "wandb") -> None:
    """Runs a program of the library's environment, which `make test-long` installs."""
    if not LIBRARIES:
        pytest.skip("the library of Weights & Biases is not installed: make test-long")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": KEY,
        "WANDB_DIR": str(folder),
        "WANDB_ERROR_REPORTING": "false",
        "WANDB__DISABLE_STATS": "true",
    }
    process = await asyncio.create_subprocess_exec(
        *guarded([str(LIBRARIES[-1] / program), *arguments]),
        env=environment,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(180):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
