"""Corpora that are larger than the room that probe and trainer give them, from the upload and from a hub."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetuneflow import Client
from finetuneflow.resources.job import Job
from tests.e2e.conftest import System
from tests.e2e.test_corpora import HYPER, WORDS
from tests.e2e.test_faults import Follower, the_process
from tests.fakes.hub import Hub

pytestmark = pytest.mark.long

FILE_BYTES = 4500
COMMIT = "c" * 40


def text(seed: int) -> str:
    rng = random.Random(seed)  # noqa: S311
    return "".join(" ".join(rng.choices(WORDS, k=9)) + ".\n" for _ in range(150))[:FILE_BYTES]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    for number in range(3):
        (folder / f"train-{number}.txt").write_text(text(10 + number))
    (folder / "test.txt").write_text(text(99))
    hub = Hub(folder, {"org/texts": {COMMIT: folder}})
    with hub.serving():
        yield hub


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Iterator[System]:
    system = System(
        tmp_path_factory.mktemp("home"),
        HF_ENDPOINT=hub.endpoint,
        FTF_TRAINER_CORPUS_CACHE_BYTES=str(2 * FILE_BYTES),
        FTF_PROBE_CORPUS_CACHE_BYTES=str(FILE_BYTES),
    )
    system.start()
    yield system
    system.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.txt").write_text(text(number))
    return folder


def start(client: Client, data: str, steps: int, attempts: int = 3) -> Job:
    hyper = {**HYPER, "max_steps": steps, "eval_steps": steps}
    return client.jobs.create(
        base_model="tiny",
        training_data=data,
        method="full",
        hyperparameters=hyper,
        seed=5,
        max_attempts=attempts,
    )


def losses(client: Client, job_id: str) -> dict[int, tuple[float, int]]:
    """Loss and tokens of each step, the same in each attempt that trained it."""
    found: dict[int, tuple[float, int]] = {}
    for event in client.jobs.events(job_id):
        if event.kind == "log":
            figures = (event.log.loss, event.log.num_tokens)
            assert found.setdefault(event.log.step, figures) == figures
    return found


def test_killed_training_on_more_files_than_fit_has_the_same_losses(system: System, folder: Path) -> None:
    with Client(system.address) as client:
        seen = []
        for kills in (0, 1):
            job = start(client, str(folder), 60)
            follower = Follower(system, job.id)
            if kills:
                follower.wait_for_log_events(40)
                the_process(system, "services.trainer.worker").kill()
            ended = follower.wait_for_end()
            assert (ended.state, ended.failed_attempts) == ("SUCCEEDED", kills), ended.message
            seen.append(losses(client, job.id))
        assert seen[0] == seen[1]
        assert seen[0][60][1] == 60 * 4 * 64


def test_hub_dataset_of_several_files_is_trained_on_its_training_files(system: System, hub: Hub) -> None:
    with Client(system.address) as client:
        job = start(client, "hf://org/texts", 20)
        ended = Follower(system, job.id).wait_for_end()
        assert ended.state == "SUCCEEDED", ended.message
        pinned = [f"hf://org/texts@{COMMIT}/train-{number}.txt" for number in range(3)]
        assert [source["dataset"] for source in ended.resolved_spec["training_data"]] == pinned
        assert [(one.pinned, len(one.sha256)) for one in ended.preflight.hub_datasets] == [(p, 64) for p in pinned]
    assert "test.txt" not in hub.sent


def test_file_that_vanishes_while_it_trains_fails_the_job_with_its_name(system: System, folder: Path) -> None:
    with Client(system.address) as client:
        job = start(client, str(folder), 3000, attempts=1)
        follower = Follower(system, job.id)
        follower.wait_for_log_events(30)
        for source in client.jobs.get(job.id).resolved_spec["training_data"]:
            shutil.rmtree(system.home / "artifacts" / "default" / "datasets" / source["dataset"])
        ended = follower.wait_for_end()
        assert (ended.state, ended.reason) == ("FAILED", "PREPARATION_FAILED"), ended.message
        assert "datasets/ds_" in ended.message
