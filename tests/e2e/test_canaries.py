"""A secret and a row's text, searched for everywhere after a run of everything.

Real gateway, services, broker and children, with debug logs; the hub is a stand-in that asks for the secret.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nats
import psutil
import pytest
from nats.aio.msg import Msg

from finetuneflow import Client, JobFailed
from finetuneflow.resources.event import Event
from finetuneflow.resources.job import Job
from finetuneflow.v1.audit_service_pb2 import ListAuditEntriesRequest
from tests.access.gateway import AccessGateway
from tests.fakes.hub import Hub
from tests.services.conftest import SERVICES, Process
from tests.tiny_models import make_tiny_model

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

SECRET = "hf_CanarySecretOfThisRun"
EXPIRED = "hf_CanaryExpiredToken"
ROW = "CanaryRowOfThisRun"
COMMIT = "c" * 40
HYPERPARAMETERS = {"num_epochs": 1, "logging_steps": 5, "eval_steps": 20, "max_length": 64, "learning_rate": 1e-2}


@dataclass
class Run:
    """Everything that was seen of a run."""

    home: Path
    gateway: AccessGateway
    services: list[Process]
    hub: Hub
    messages: list[tuple[str, bytes]] = field(default_factory=list)
    """Subject and bytes of each message on the broker."""
    processes: set[str] = field(default_factory=set)
    """Arguments and environment of each process that was seen."""
    events: list[Event] = field(default_factory=list)
    failed: Job | None = None
    succeeded: Job | None = None

    @property
    def logs(self) -> dict[str, str]:
        return {"gateway": self.gateway.log, **{each.name: "".join(each.lines) for each in self.services}}

    def look_at_processes(self) -> None:
        for service in self.services:
            for process in (root := psutil.Process(service.popen.pid), *root.children(recursive=True)):
                for name in ("cmdline", "environ"):
                    try:
                        self.processes.add(Path(f"/proc/{process.pid}/{name}").read_text(errors="replace"))
                    except OSError:
                        # It has ended, or hides itself from other processes.
                        continue


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    home, outside = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("outside")
    (outside / COMMIT).mkdir()
    rows = [{"question": f"What is {n} plus {n}? {ROW}", "answer": f"The answer is {n + n}."} for n in range(200)]
    lines = [json.dumps(row) + "\n" for row in rows]
    (outside / COMMIT / "train.jsonl").write_text("".join(lines[:100]))
    (outside / "rows.jsonl").write_text("".join(lines[100:]))
    (outside / "broken.jsonl").write_text("".join(lines[:20]) + json.dumps({"question": ROW}) + f"\n{ROW} no JSON\n")
    hub = Hub(make_tiny_model(outside / "model"), {"org/rows": {COMMIT: outside / COMMIT}})
    hub.readers, hub.tokens["org/rows"], hub.expired = {SECRET}, SECRET, {EXPIRED}
    gateway = AccessGateway(home, LOG_LEVEL="DEBUG")
    with pytest.MonkeyPatch.context() as patch, hub.serving():
        patch.setenv("HF_ENDPOINT", hub.endpoint)
        patch.setenv("FTF_LOG_LEVEL", "DEBUG")
        patch.setenv("FTF_HUB_CACHE_SHARED", "false")
        gateway.start()
        services = [Process(name, home, gateway.nats) for name in SERVICES]
        try:
            for service in services:
                service.wait_until_it_listens()
            found = Run(home, gateway, services, hub)
            asyncio.run(_everything(found, outside))
            yield found
        finally:
            for service in services:
                service.stop()
            gateway.stop()


async def _everything(run: Run, outside: Path) -> None:
    server = run.gateway.nats
    broker = await nats.connect(server.url, user=server.user, password=server.password)

    async def keep(message: Msg) -> None:
        run.messages.append((message.subject, message.data))

    # Also the answers to claims, which the broker passes on to the accounts of the services.
    await broker.subscribe(">", cb=keep)
    await broker.flush()
    try:
        await asyncio.to_thread(_jobs, run, outside)
        await broker.flush()
    finally:
        await broker.close()


def _jobs(run: Run, outside: Path) -> None:
    with Client(run.gateway.address, token=run.gateway.operator) as client:
        client.secrets.set("hub", SECRET)
        client.secrets.set("expired", EXPIRED)

        def follow(secret: str, model: str, *data: str) -> Job:
            job = client.jobs.create(
                base_model=model,
                training_data=list(data),
                hyperparameters=HYPERPARAMETERS,
                secrets={"hub_token": secret},
                max_attempts=1,
            )
            for event in client.jobs.watch(job.id):
                run.events.append(event)
                run.look_at_processes()
            return client.jobs.get(job.id)

        uploaded = str(outside / "rows.jsonl")
        run.succeeded = follow("hub", "org/tiny", uploaded, "hf://org/rows")
        run.failed = follow("expired", "org/tiny", uploaded)
        follow("hub", "org/tiny", str(outside / "broken.jsonl"))
        evaluation = client.evaluations.create(run.succeeded.tuned_model)
        client.evaluations.wait(evaluation.id)
        export = client.exports.create(run.succeeded.tuned_model)
        client.exports.wait(export.id)
        try:
            client.jobs.wait(run.failed.id)
        except JobFailed as error:
            assert EXPIRED not in str(error) + error.advice


def test_everything_has_run_with_the_secret(run: Run) -> None:
    """A search after a run that did not use the secret would prove nothing."""
    assert run.succeeded and run.succeeded.state == "SUCCEEDED", run.succeeded
    assert SECRET in run.hub.checks
    assert run.failed and (run.failed.reason, run.failed.fault) == ("HUB_TOKEN_REFUSED", "USER_ERROR")
    assert {"phase", "log", "sample", "artifact", "stage_failed"} <= {event.kind for event in run.events}
    subjects = {subject.rpartition(".")[0] for subject, _ in run.messages}
    assert "ftf.v1.claim.trainer" in subjects
    # Only its sealed form has the name beside it.
    assert any(subject.startswith("_R_.") and b"\x03hub" in data for subject, data in run.messages)
    assert any("services.trainer.worker" in seen for seen in run.processes)
    with Client(run.gateway.address, token=run.gateway.operator) as client:
        assert {secret.name: bool(secret.last_use_time) for secret in client.secrets.list()} == {
            "hub": True,
            "expired": True,
        }


@pytest.mark.parametrize("canary", [SECRET, EXPIRED])
def test_secret_is_in_no_file_log_message_event_or_process(run: Run, canary: str) -> None:
    value = canary.encode()
    files = [file for file in run.home.rglob("*") if file.is_file() and not file.is_symlink()]
    assert {"gateway.sqlite", "gateway.log", "secrets.key"} <= {file.name for file in files}
    assert [str(file) for file in files if value in file.read_bytes()] == []
    assert [name for name, log in run.logs.items() if canary in log] == []
    assert [subject for subject, data in run.messages if value in data] == []
    assert [event.kind for event in run.events if value in event.proto.SerializeToString()] == []
    assert not any(canary in seen for seen in run.processes)


def test_rows_text_is_only_where_data_belongs(run: Run) -> None:
    """Logs and the audit log are read by people who may not read a tenant's data."""
    assert [name for name, log in run.logs.items() if ROW in log] == []
    request = ListAuditEntriesRequest(page_size=1000)
    entries = run.gateway.call("AuditService.ListAuditEntries", run.gateway.operator, request)
    assert entries.responses and ROW not in str(entries.responses)
    kinds = {event.kind for event in run.events if ROW.encode() in event.proto.SerializeToString()}
    # The end of an evaluation repeats its samples.
    assert kinds <= {"sample", "stage_completed"}
    outside = [
        str(file.relative_to(run.home))
        for file in run.home.rglob("*")
        if file.is_file() and ROW.encode() in file.read_bytes()
    ]
    stores = ("artifacts/", "gateway.sqlite", "jetstream/")
    assert [name for name in outside if not name.startswith(stores)] == []
    assert not any(ROW in seen for seen in run.processes)
