"""Exports that are pushed to a stand-in of the hub, by the whole system."""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetuneflow import Client, InvalidArgument, NotFound, WorkCancelled, WorkFailed
from finetuneflow.resources.job import Job
from tests.e2e.conftest import System
from tests.e2e.test_model_work import ftf
from tests.fakes.hub import Hub

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

TOKEN = "hf_CanaryTokenOfThePush"
SECRETS = {"hub_write_token": "writer"}


@dataclass
class Pushing:
    """A system beside a hub, and a job whose own export was pushed."""

    system: System
    hub: Hub
    job: Job


@pytest.fixture(scope="module")
def pushing(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> Iterator[Pushing]:
    home = tmp_path_factory.mktemp("home")
    (home / "failpoints").mkdir()
    hub = Hub(home)
    hub.writes.writers = {TOKEN: "org"}
    with hub.serving():
        failpoints = str(home / "failpoints")
        system = System(home, HF_ENDPOINT=hub.endpoint, FTF_FAILPOINTS=failpoints, FTF_LOG_LEVEL="DEBUG")
        system.start()
        try:
            with Client(system.address) as client:
                client.secrets.set("writer", TOKEN)
                client.secrets.set("stranger", "hf_unknown")
                job = client.jobs.create(
                    base_model="tiny",
                    training_data=str(rows),
                    hyperparameters={"max_steps": 10, "max_length": 64, "save_steps": 5, "eval_steps": 5},
                    export={"hub": {"repo_id": "org/own"}},
                    secrets=SECRETS,
                )
                yield Pushing(system, hub, client.jobs.wait(job.id))
        finally:
            system.stop()


@pytest.fixture
def client(pushing: Pushing) -> Iterator[Client]:
    with Client(pushing.system.address) as client:
        yield client


def test_package_of_a_job_is_on_the_hub(pushing: Pushing, client: Client, tmp_path: Path) -> None:
    """Its files load from there under their own names, and the commit is named where its result is."""
    result = client.exports.get(pushing.job.export_id).result
    assert result is not None and result.hub is not None
    repository = pushing.hub.writes.repositories["org/own"]
    (commit,) = repository.commits
    assert (result.hub.commit_oid, result.hub.revision, repository.private) == (commit.oid, "main", True)
    assert result.hub.commit_url == f"{pushing.hub.endpoint}/org/own/commit/{commit.oid}"
    assert pushing.job.id in commit.summary
    client.exports.download(pushing.job.export_id, tmp_path)
    files = {file.relative_to(tmp_path).as_posix(): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    del files["finetuneflow_export.zip"]
    assert {name: file.content for name, file in repository.branches["main"].items()} == files
    phases = [event.phase for event in client.jobs.events(pushing.job.id, kinds=["phase"])]
    pushed = [phase for phase in phases if phase.name == "pushing"]
    assert (pushed[0].index, pushed[0].count, pushed[-1].fraction) == (6, 6, 1.0)
    assert commit.oid in ftf(pushing.system, "jobs", "get", pushing.job.id)


def test_export_asked_for_alone_is_pushed_if_it_says_so(pushing: Pushing, client: Client) -> None:
    """Another form of the model must not replace the first one on the hub by itself."""
    commits = len(pushing.hub.writes.repositories["org/own"].commits)
    again = client.exports.wait(client.exports.create(pushing.job.id).id)
    assert again.result is not None and again.result.hub is None
    assert len(pushing.hub.writes.repositories["org/own"].commits) == commits
    shown = ftf(pushing.system, "export", pushing.job.id, "--push", "org/other", "--public", "--revision", "v1")
    other = pushing.hub.writes.repositories["org/other"]
    assert not other.private and [commit.branch for commit in other.commits] == ["v1"]
    assert f"org/other, v1: {pushing.hub.endpoint}/org/other/commit/{other.commits[0].oid}" in shown
    ftf(pushing.system, "export", pushing.job.id, "--public", code=2)
    with pytest.raises(InvalidArgument, match=r"spec\.hub\.repo_id"):
        client.exports.create(pushing.job.id, hub={"repo_id": "datasets/org/x"})
    with pytest.raises(NotFound, match="no secret 'none'"):
        client.exports.create(pushing.job.id, hub={"repo_id": "org/x"}, secrets={"hub_write_token": "none"})


def test_other_checkpoint_is_exported_under_its_own_step(pushing: Pushing, client: Client, tmp_path: Path) -> None:
    """The best step by the loss is not always the best one to serve; figures of another step would be wrong."""
    assert pushing.job.training is not None
    best = pushing.job.training.best_step
    steps = {checkpoint.step for checkpoint in client.jobs.checkpoints(pushing.job.id)}
    (step,) = steps - {best}
    model = f"{pushing.job.tuned_model}@{step}"
    made = client.exports.wait(client.exports.create(model, hub={"repo_id": "org/step"}).id)
    assert made.model == model
    client.exports.download(made.id, tmp_path)
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert (figures["exported_step"], figures["best_step"]) == (step, best)
    assert figures["evaluation"]["tuned"]["loss"] is None
    card, report = ((tmp_path / name).read_text() for name in ("README.md", "report.md"))
    assert f"step {step}. It was not evaluated" in card and "model-index" not in card
    assert f"Packed: step {step}" in report and "the one that is packed" not in report
    weights = pushing.hub.writes.repositories["org/step"].branches["main"]["adapter_model.safetensors"]
    own = pushing.hub.writes.repositories["org/own"].branches["main"]["adapter_model.safetensors"]
    assert weights.content != own.content
    with pytest.raises(NotFound, match="no checkpoint of step 999"):
        client.exports.create(f"{pushing.job.tuned_model}@999")


def test_refused_push_fails_the_export_and_keeps_its_files(pushing: Pushing, client: Client, tmp_path: Path) -> None:
    made = client.exports.create(pushing.job.id, hub={"repo_id": "org/x"}, secrets={"hub_write_token": "stranger"})
    with pytest.raises(WorkFailed) as caught:
        client.exports.wait(made.id)
    assert (caught.value.reason, caught.value.fault) == ("HUB_TOKEN_REFUSED", "USER_ERROR")
    assert (tmp_path / "README.md") in client.exports.download(made.id, tmp_path)


def test_push_can_be_cancelled(pushing: Pushing, client: Client) -> None:
    """Gigabytes take hours."""
    writes, sending, go_on = pushing.hub.writes, threading.Event(), threading.Event()
    writes.large_files.clear()

    def hold(_size: int) -> None:
        sending.set()
        go_on.wait(120)

    writes.before_storing = hold
    try:
        made = client.exports.create(pushing.job.id, hub={"repo_id": "org/cancelled"})
        assert sending.wait(120)
        client.exports.cancel(made.id)
        with pytest.raises(WorkCancelled):
            client.exports.wait(made.id)
    finally:
        writes.before_storing = lambda _size: None
        go_on.set()
    assert writes.repositories["org/cancelled"].commits == []


def test_push_that_is_killed_after_its_commit_makes_no_second_one(pushing: Pushing, client: Client) -> None:
    (pushing.system.home / "failpoints" / "push.committed").write_text("kill")
    made = client.exports.wait(client.exports.create(pushing.job.id, hub={"repo_id": "org/killed"}).id)
    assert [attempt.outcome for attempt in made.attempts] == ["FAILED", "COMPLETED"]
    (commit,) = pushing.hub.writes.repositories["org/killed"].commits
    assert made.result is not None and made.result.hub is not None and made.result.hub.commit_oid == commit.oid


def test_token_is_in_no_file_log_or_event(pushing: Pushing, client: Client) -> None:
    """Whoever reads them could write to the repositories of its owner."""
    read, found = set(), []
    for file in pushing.system.home.rglob("*"):
        # The folders of attempts that have ended are being deleted.
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            if not file.is_symlink():
                content = file.read_bytes()
                read.add(file.name)
                found += [str(file)] if TOKEN.encode() in content else []
    assert {"gateway.log", "exporter.log"} <= read and found == []
    for export in client.exports.list(job_id=pushing.job.id):
        assert TOKEN not in str(export.proto)
