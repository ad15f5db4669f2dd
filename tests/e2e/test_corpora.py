"""A folder of text as a corpus that is streamed: from the upload to the package, with a killed training."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetuneflow import Client, JobFailed
from tests.e2e.conftest import System
from tests.e2e.test_faults import Follower, the_process

WORDS = ["alpha", "beta", "question", "answer", "return", "path", "what", "does", "list", "order"]
HYPER = {
    "streaming": True,
    "shuffle_buffer_tokens": 4096,
    "max_steps": 60,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_length": 64,
    "logging_steps": 1,
    "eval_steps": 30,
    "save_steps": 7,
}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    system = System(tmp_path_factory.mktemp("home"))
    system.start()
    yield system
    system.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    rng = random.Random(3)  # noqa: S311
    for number in range(7):
        path = folder / ("a" if number % 2 else "b") / f"part-{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(" ".join(rng.choices(WORDS, k=9)) + ".\n" for _ in range(300)))
    return folder


@pytest.mark.long
def test_folder_is_streamed_and_a_killed_training_has_the_same_losses(system: System, folder: Path) -> None:
    """The two trainings of one corpus: one undisturbed, one whose child is killed."""
    with Client(system.address) as client:
        losses = []
        for kills in (0, 2):
            job = client.jobs.create(
                base_model="tiny", training_data=str(folder), method="full", hyperparameters=HYPER, seed=5
            )
            follower = Follower(system, job.id)
            for _ in range(kills):
                follower.wait_for_log_events(20)
                the_process(system, "services.trainer.worker").kill()
            ended = follower.wait_for_end()
            assert (ended.state, ended.failed_attempts) == ("SUCCEEDED", kills), ended.message
            logs = [event.log for event in client.jobs.events(job.id) if event.kind == "log"]
            losses.append({log.step: (log.loss, log.num_tokens) for log in logs})
        assert losses[0] == losses[1]
        assert losses[0][60][1] == 60 * 4 * 64
        names = {dataset.display_name for dataset in client.datasets.list()}
        assert {"corpus/a/part-1.txt", "corpus/b/part-6.txt"} <= names


def test_broken_file_in_the_middle_is_named_before_training(system: System, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "corpus"
    broken.mkdir()
    for number, file in enumerate(sorted(folder.rglob("*.txt"))):
        (broken / f"{number}.txt").write_bytes(file.read_bytes())
    lines = b"fine\n" * 400_000
    (broken / "3.txt").write_bytes(lines + b"caf\xe9\n" + lines)
    with Client(system.address) as client:
        job = client.jobs.create(base_model="tiny", training_data=str(broken), hyperparameters=HYPER)
        with pytest.raises(JobFailed) as caught:
            client.jobs.wait(job.id)
        assert caught.value.reason == "BAD_DATA"
        assert "training_data[3] row 400001 of 3.txt: not UTF-8: byte 0xe9" in caught.value.message
