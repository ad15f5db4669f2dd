"""Hub datasets in a job's preflight, with the real supervisor, download and child."""

import asyncio
import contextlib
import json
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from pydantic import SecretStr

from chassis.child.child_process import Child, ChildCommand
from chassis.store.artifact_store import ArtifactStore
from engine.config.job import job_config
from engine.config.spec_proto import config_to_spec
from engine.errors import JobError, SystemFailure
from finetuneflow.v1.dataset_pb2 import Dataset
from finetuneflow.v1.event_pb2 import ConfigResolved, Event
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from finetuneflow.v1.stage_result_pb2 import PreflightResult
from finetuneflow.v1.work_pb2 import Assignment
from services.attempt_inputs import catalogue
from services.probe.hub_sources import HashNotes
from services.probe.settings import ProbeSettings
from services.probe.stage import PreflightStage
from services.probe.worker.child_input import PreflightInput
from tests.fakes.hub import Hub
from tests.tiny_models import make_tiny_model

OLD, NEW = "a" * 40, "b" * 40


def rows(first: int, number: int) -> str:
    numbers = range(first, first + number)
    return "".join(json.dumps({"question": f"What is {n}?", "answer": f"It is {n}."}) + "\n" for n in numbers)


def written(command: ChildCommand) -> str:
    return Path(command.argv[-1]).read_text()


@dataclass
class PreflightNode:
    """A machine that runs preflights, with one uploaded dataset of 20 rows, `ds_1`."""

    folder: Path
    settings: ProbeSettings
    store: ArtifactStore
    sha256: str

    async def prepare(
        self, *datasets: str, secrets: Mapping[str, SecretStr] | None = None, **more: Any
    ) -> ChildCommand:
        """Runs the supervisor's preparation for a job on these datasets, up to the start of the child. With `secrets`
        the job names the secret `hub` for its token; `more` are fields of its spec."""
        spec: dict[str, Any] = {
            "base_model": "tiny",
            "recipe": "cpu-demo",
            "holdout_fraction": 0,
            "training_data": [{"dataset": name} for name in datasets],
            **more,
        }
        if secrets is not None:
            spec["secrets"] = {"hub_token": "hub"}
        workdir = self.folder / f"work-{len(list(self.folder.glob('work-*')))}"
        workdir.mkdir()
        uploaded = Dataset(id="ds_1", filename="rows.jsonl", path="datasets/ds_1/rows.jsonl", sha256=self.sha256)
        assignment = Assignment(
            job_id="ftjob_1",
            tenant="default",
            spec=ParseDict(spec, FineTuningJobSpec()),
            merged_spec=config_to_spec(job_config(spec)),
            datasets=[uploaded] if "ds_1" in datasets else [],
        )
        stage = PreflightStage(self.settings, catalogue(self.settings))
        return await stage.prepare(assignment, workdir, self.store, secrets or {})

    async def prepared(self, *datasets: str) -> PreflightInput:
        """Prepares a job on these datasets and returns the child's input."""
        return PreflightInput.model_validate_json(written(await self.prepare(*datasets)))

    async def preflight(self, *datasets: str, **more: Any) -> tuple[PreflightResult, ConfigResolved]:
        """Runs the preflight of a job on these datasets to its end."""
        command = await self.prepare(*datasets, **more)
        child = await Child.start(command.argv, {**command.env, **command.late_env}, Path.cwd())
        providing = asyncio.create_task(command.provide()) if command.provide else None
        try:
            async with asyncio.timeout(120), contextlib.aclosing(child.frames()) as frames:
                events = [Event.FromString(frame) async for frame in frames if frame]
            await child.wait()
        finally:
            child.close()
            if providing:
                providing.cancel()
        assert events[-1].HasField("stage_completed"), (events[-1], child.last_lines())
        (resolved,) = (event.config_resolved for event in events if event.HasField("config_resolved"))
        workdir = Path(command.argv[-1]).parent
        HashNotes(workdir).complete(events[-1].stage_completed.preflight)
        return events[-1].stage_completed.preflight, resolved


@pytest.fixture
def node(tmp_path: Path) -> PreflightNode:
    store = ArtifactStore((tmp_path / "artifacts").as_uri())
    (tmp_path / "rows.jsonl").write_text(rows(1000, 20))
    stored = store.put_file(tmp_path / "rows.jsonl", "default/datasets/ds_1/rows.jsonl")
    models = {"tiny": make_tiny_model(tmp_path / "tiny")}
    settings = ProbeSettings(home=tmp_path / "home", models=models, node_id="node-1")
    return PreflightNode(tmp_path, settings, store, stored.sha256)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / OLD).mkdir()
    (tmp_path / OLD / "train.jsonl").write_text(rows(0, 30))
    with Hub(tmp_path, {"org/rows": {OLD: tmp_path / OLD}}).asked() as hub:
        yield hub


def push(hub: Hub, folder: Path) -> None:
    """Pushes a new commit of the dataset."""
    (folder / NEW).mkdir()
    (folder / NEW / "train.jsonl").write_text(rows(0, 40))
    hub.datasets["org/rows"][NEW] = folder / NEW


async def test_job_with_hub_dataset_and_uploaded_dataset(hub: Hub, node: PreflightNode) -> None:
    """The rows of both are used, and the result names commit, file and bytes."""
    found, resolved = await node.preflight("hf://org/rows", "ds_1")
    assert found.training_data.num_examples == 50
    (read,) = found.hub_datasets
    assert (read.asked, read.pinned) == ("hf://org/rows", f"hf://org/rows@{OLD}/train.jsonl")
    assert (read.revision, read.filename, read.size_bytes) == (OLD, "train.jsonl", len(rows(0, 30)))
    assert len(read.sha256) == 64
    assert [source.dataset for source in resolved.resolved_spec.training_data] == [read.pinned, "ds_1"]
    reasons = {each.field: each.reason for each in resolved.resolutions}
    assert "hf://org/rows" in reasons["training_data[0].dataset"]
    assert not any("org/rows" in str(path) or path.name == "train.jsonl" for path in node.settings.home.rglob("*"))


STREAMING: dict[str, Any] = {
    "recipe": "text-pretrain",
    "hyperparameters": {"streaming": True, "max_length": 64, "shuffle_buffer_tokens": 1024},
}


async def test_corpus_of_three_files_is_read_one_file_at_a_time(hub: Hub, node: PreflightNode) -> None:
    """Each file is downloaded once, although the disk has room for one of them only."""
    folder = node.folder / OLD
    for number in range(3):
        (folder / "text").mkdir(exist_ok=True)
        (folder / "text" / f"{number}.txt").write_text(f"A line of the file {number}, with some words.\n" * 100)
    sizes = [file.stat().st_size for file in sorted((folder / "text").iterdir())]
    node.settings = node.settings.model_copy(update={"corpus_cache_bytes": max(sizes)})
    found, resolved = await node.preflight("hf://org/rows/text", holdout_fraction=0.1, **STREAMING)
    pinned = [f"hf://org/rows@{OLD}/text/{number}.txt" for number in range(3)]
    assert [source.dataset for source in resolved.resolved_spec.training_data] == pinned
    assert [(one.pinned, one.size_bytes, len(one.sha256)) for one in found.hub_datasets] == [
        (name, size, 64) for name, size in zip(pinned, sizes, strict=True)
    ]
    assert hub.sent == {f"{number}.txt": size for number, size in enumerate(sizes)}
    assert found.estimate.disk.corpus_bytes == max(sizes)
    (told,) = [each for each in resolved.resolutions if each.field == "training_data"]
    assert (told.value, "hf://org/rows/text" in told.reason) == (f"3 files at {OLD}", True)


async def test_file_of_a_corpus_that_the_disk_cannot_hold_is_refused(hub: Hub, node: PreflightNode) -> None:
    node.settings = node.settings.model_copy(update={"corpus_cache_bytes": 100})
    with pytest.raises(JobError) as caught:
        await node.prepare("ds_1", "hf://org/rows", **STREAMING)
    assert caught.value.reason == "DATASET_TOO_LARGE"
    assert caught.value.violations[0].field == "spec.training_data[1].dataset"
    assert "FTF_PROBE_CORPUS_CACHE_BYTES" in caught.value.advice
    assert hub.sent == {}


async def test_resolved_spec_pins_the_commit(hub: Hub, node: PreflightNode) -> None:
    """A job repeated from its resolved spec reads the same rows; one without a revision reads the newest."""
    first = await node.prepared("hf://org/rows")
    push(hub, node.folder)
    (pinned,) = first.sources
    again = await node.prepared(pinned)
    newest = await node.prepared("hf://org/rows@main")
    assert again.content_key == first.content_key != newest.content_key
    assert again.config.training_data == first.config.training_data
    assert [file.read_text() for file in again.sources.values()] == [rows(0, 30)]
    assert [file.read_text() for file in newest.sources.values()] == [rows(0, 40)]
    assert newest.hub[0].revision == NEW


async def test_same_rows_from_hub_and_upload_share_token_shards(hub: Hub, node: PreflightNode) -> None:
    """Rows that are on the hub need not be tokenised again after an upload."""
    (node.folder / OLD / "train.jsonl").write_text(rows(1000, 20))
    uploaded = await node.prepared("ds_1")
    assert uploaded.content_key
    assert (await node.prepared("hf://org/rows/train.jsonl")).content_key == uploaded.content_key


@pytest.mark.parametrize(
    ("dataset", "limit", "reason"),
    [
        ("hf://org/unknown", 1 << 20, "DATASET_NOT_FOUND"),
        ("hf://org/gated", 1 << 20, "DATASET_GATED"),
        ("hf://org/rows", 100, "DATASET_TOO_LARGE"),
    ],
)
async def test_unavailable_dataset_fails_the_job_with_its_field(
    hub: Hub, node: PreflightNode, dataset: str, limit: int, reason: str
) -> None:
    node.settings = node.settings.model_copy(update={"max_dataset_bytes": limit})
    with pytest.raises(JobError) as caught:
        await node.prepare("ds_1", dataset)
    assert caught.value.reason == reason
    assert caught.value.violations[0].field == "spec.training_data[1].dataset"
    assert hub.sent == {}


async def test_unreachable_hub_is_retried(node: PreflightNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SystemFailure) as caught:
        await node.prepare("hf://org/rows")
    assert caught.value.reason == "HUB_UNREACHABLE"


async def test_private_dataset_is_read_with_operators_token_hidden_from_child(hub: Hub, node: PreflightNode) -> None:
    hub.tokens["org/rows"] = "hf_private"
    with pytest.raises(JobError) as caught:
        await node.prepare("hf://org/rows")
    assert caught.value.reason == "DATASET_NOT_FOUND"
    node.settings = operators_token(node, "org/*")
    command = await node.prepare("hf://org/rows")
    assert "hf_private" not in written(command)
    assert "hf_private" not in str(command)


@pytest.mark.parametrize("listed", [(), ("another/*", "org/row")])
async def test_operators_token_is_not_used_for_what_is_not_on_the_list(
    hub: Hub, node: PreflightNode, listed: tuple[str, ...]
) -> None:
    """Otherwise every caller could train on whatever the operator's account can read."""
    hub.tokens["org/rows"] = "hf_private"
    node.settings = operators_token(node, *listed)
    with pytest.raises(JobError, match="does not exist on the hub, or is private") as caught:
        await node.prepare("hf://org/rows")
    assert caught.value.reason == "DATASET_NOT_FOUND"
    assert "FTF_HUB_TOKEN_REPOSITORIES" in caught.value.advice and "ftf secrets set" in caught.value.advice
    assert hub.sent == {}


async def test_jobs_own_token_reads_its_dataset_and_is_hidden_from_child(hub: Hub, node: PreflightNode) -> None:
    hub.tokens["org/rows"] = "hf_mine"
    node.settings = operators_token(node, "*")
    command = await node.prepare("hf://org/rows", secrets={"hub": SecretStr("hf_mine")})
    assert "hf_mine" not in written(command)
    assert "hf_mine" not in str(command)
    files = [file for file in node.folder.rglob("*") if file.is_file()]
    assert not [file for file in files if b"hf_mine" in file.read_bytes()]


async def test_a_job_with_its_own_token_never_uses_the_operators(hub: Hub, node: PreflightNode) -> None:
    """A caller who may not read a dataset must not get it because the operator may."""
    hub.tokens["org/rows"] = "hf_private"
    node.settings = operators_token(node, "*")
    with pytest.raises(JobError) as caught:
        await node.prepare("hf://org/rows", secrets={"hub": SecretStr("hf_mine")})
    assert caught.value.reason == "DATASET_NOT_FOUND"


async def test_a_deleted_secret_fails_the_job_with_its_name(hub: Hub, node: PreflightNode) -> None:
    with pytest.raises(JobError, match="'hub' was deleted") as caught:
        await node.prepare("hf://org/rows", secrets={})
    assert (caught.value.reason, caught.value.violations[0].field) == ("SECRET_MISSING", "spec.secrets.hub_token")


@pytest.mark.parametrize("value", ["hf_canary\n", "hf canary", "hf_canary\x7f", "hf_cänary"])
async def test_a_secret_that_is_no_token_is_refused_without_its_value(
    hub: Hub, node: PreflightNode, value: str
) -> None:
    """The HTTP client quotes a header that it cannot send, and its exception would become an event of the job."""
    with pytest.raises(JobError) as caught:
        await node.prepare("hf://org/rows", secrets={"hub": SecretStr(value)})
    assert caught.value.reason == "HUB_TOKEN_REFUSED"
    assert "nary" not in "".join(traceback.format_exception(caught.value))


async def test_login_of_the_nodes_user_serves_no_caller(
    hub: Hub, node: PreflightNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client sends HF_TOKEN by itself, whoever asks."""
    hub.tokens["org/rows"] = "hf_of_the_machine"
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_machine")
    with pytest.raises(JobError) as caught:
        await node.prepare("hf://org/rows")
    assert caught.value.reason == "DATASET_NOT_FOUND"


def operators_token(node: PreflightNode, *listed: str) -> ProbeSettings:
    """The node's settings with the operator's token `hf_private` for the listed repositories."""
    update = {"hub_token": SecretStr("hf_private"), "hub_token_repositories": listed}
    return node.settings.model_copy(update=update)
