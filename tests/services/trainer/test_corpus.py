"""A training on a streamed corpus: killed anywhere, it sees the same sequences; damage in a file is named."""

import gzip
import json
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.config.job import DataSource
from engine.data.prepare import prepare
from engine.errors import JobError
from finetuneflow.v1.event_pb2 import Log
from services.trainer.worker.child_input import TrainingInput
from services.trainer.worker.recipe import train
from tests.services.providing import Providing
from tests.services.trainer.children import run
from tests.services.trainer.parts import Recorder
from tests.services.trainer.test_ranks import run_ranks
from tests.services.trainer.test_resume import assert_same_as_uninterrupted, run_with_deaths

MakeInput = Callable[..., Any]
WORDS = ["alpha", "beta", "question", "answer", "return", "path", "what", "does", "list", "order"]
# Blocks of 16 sequences, steps of 4: deaths within a block, at the end of one, and right after a checkpoint. The corpus
# has about 90 sequences, so that an epoch ends in the training.
DEATHS = (
    "checkpoint.written",
    "training.step-7",
    "training.step-13",
    "checkpoint.emitted-20",
    "training.step-27",
)
HYPER: dict[str, Any] = {
    "streaming": True,
    "packing": True,
    "group_by_length": False,
    "shuffle_buffer_tokens": 1024,
    "max_length": 64,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "logging_steps": 1,
    "eval_steps": 12,
    "save_steps": 4,
    "early_stopping_patience": 0,
}


def text(seed: int, lines: int) -> str:
    rng = random.Random(seed)  # noqa: S311
    return "".join(" ".join(rng.choices(WORDS, k=8)) + ".\n" for _ in range(lines))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Seven files, two of them compressed and one with rows."""
    folder = tmp_path / "files"
    folder.mkdir()
    found = {}
    for number in range(7):
        path = folder / f"{number}.txt"
        path.write_text(text(number, 30 + 7 * number))
        if number in (2, 5):
            path = folder / f"{number}.txt.gz"
            path.write_bytes(gzip.compress(text(number, 60).encode()))
        elif number == 4:
            path = folder / "4.jsonl"
            path.write_text(
                "".join(
                    f'{{"text": "{text(100 + row, 3)!s}"}}\n'.replace(".\n", ". ", 2).replace('.\n"', '."')
                    for row in range(20)
                )
            )
        found[f"ds_{number}"] = path
    return found


@pytest.fixture
def make_streamed(make_input: MakeInput, files: dict[str, Path], tmp_path: Path) -> MakeInput:
    """Builds a TrainingInput that streams the files; the seventh has weight 0.5."""

    every = files

    def build(
        out: str = "out",
        files: dict[str, Path] = every,
        training_data: Sequence[DataSource] | None = None,
        **more: Any,
    ) -> TrainingInput:
        built: TrainingInput = make_input(out, total_steps=30, **{**HYPER, **more})
        data = training_data or [DataSource(dataset=name, weight=0.5 if name == "ds_6" else 1.0) for name in files]
        config = built.config.model_copy(update={"training_data": data, "holdout_fraction": 0.05})
        shards = tmp_path / "shards"
        if not shards.exists():
            prepare(config, built.model.path, files, shards, lambda *_: None)
        return built.model_copy(update={"config": config, "data_dir": shards, "sources": files})

    return build


def test_every_position_of_a_streamed_batch_is_trained(make_streamed: MakeInput) -> None:
    """A user who pays for a GPU would otherwise pay for padding."""
    sink = Recorder()
    train(make_streamed(), sink)
    logs = sink.of(Log)
    assert [log.num_tokens for log in logs] == [step * 4 * 64 for step in range(1, 31)]
    assert logs[-1].epoch > 1


@pytest.mark.long
def test_streamed_training_killed_five_times_has_same_result_as_uninterrupted(make_streamed: MakeInput) -> None:
    uninterrupted = run(make_streamed("straight"))
    assert uninterrupted.status == 0, uninterrupted.stderr
    children = run_with_deaths(make_streamed, {}, DEATHS)
    assert_same_as_uninterrupted(children, uninterrupted)


@pytest.mark.long
def test_two_processes_train_on_the_sequences_of_one(make_streamed: MakeInput, tmp_path: Path) -> None:
    """A pretraining on several GPUs would otherwise read parts of the corpus twice, and others never."""
    alone = Recorder()
    train(make_streamed("alone", gradient_accumulation_steps=4, lora={"lora_dropout": 0.0}), alone)
    ranks = make_streamed("together", lora={"lora_dropout": 0.0}, resources={"world_size": 2})
    together = run_ranks(ranks, tmp_path)
    assert together.status == 0, together.lines
    found = [(log.num_tokens, log.loss) for log in together.of("log")]
    for mine, other in zip(found, [(log.num_tokens, log.loss) for log in alone.of(Log)], strict=True):
        assert mine == pytest.approx(other, rel=1e-4)


@pytest.mark.long
def test_corpus_larger_than_its_room_on_disk_is_trained_as_one_that_is_there(
    make_streamed: MakeInput, files: dict[str, Path], tmp_path: Path
) -> None:
    """Two streams, more than an epoch: a file that came late or twice would change every loss behind it."""
    whole = Recorder()
    train(make_streamed("whole"), whole)
    given = make_streamed("parts")
    sizes = {name: path.stat().st_size for name, path in files.items()}
    room = max(size for name, size in sizes.items() if name != "ds_6") + sizes["ds_6"] + 500
    parts = Recorder()
    with Providing(files, tmp_path / "attempt", given.out_dir, room) as providing:
        train(given.model_copy(update={"sources": providing.files.paths, "requests": providing.files.requests}), parts)
    assert [(log.loss, log.num_tokens) for log in parts.of(Log)] == [
        (log.loss, log.num_tokens) for log in whole.of(Log)
    ]
    assert parts.of(Log)[-1].epoch > 1
    assert providing.peak_bytes <= room < 0.6 * sum(sizes.values())
    assert len(providing.fetched) > len(files)


@pytest.mark.long
def test_two_processes_share_the_files_that_are_provided(
    make_streamed: MakeInput, files: dict[str, Path], tmp_path: Path
) -> None:
    more: dict[str, Any] = {"lora": {"lora_dropout": 0.0}, "resources": {"world_size": 2}}
    whole = run_ranks(make_streamed("whole", **more), tmp_path)
    assert whole.status == 0, whole.lines
    given, room = make_streamed("parts", **more), 2 * (3176 + 3484)
    attempt = tmp_path / "attempt"
    with Providing(files, attempt, given.out_dir, room) as providing:
        update = {"sources": providing.files.paths, "requests": providing.files.requests}
        parts = run_ranks(given.model_copy(update=update), tmp_path, writes=[attempt])
    assert parts.status == 0, parts.lines
    found = [[(log.loss, log.num_tokens) for log in each.of("log")] for each in (parts, whole)]
    assert found[0] == found[1]
    assert providing.peak_bytes <= room
    assert {path.stem for path in providing.files.requests.iterdir()} == {"process-0", "process-1"}


@pytest.mark.long
def test_resumed_training_fetches_no_file_that_it_has_read(make_streamed: MakeInput, tmp_path: Path) -> None:
    """A resumed pretraining would otherwise download terabytes before its next step."""
    equal = {}
    for number in range(9):
        equal[f"ds_{number}"] = tmp_path / f"{number}.txt"
        equal[f"ds_{number}"].write_text(f"{text(number, 40):.1500}.\n")
    data = [DataSource(dataset=name) for name in equal]

    def run_provided(out: str, **more: Any) -> tuple[Any, list[str]]:
        given = make_streamed(out, files=equal, training_data=data, **more.pop("given", {}))
        with Providing(equal, tmp_path / f"{out}-attempt", given.out_dir, 1502) as providing:
            update = {"sources": providing.files.paths, "requests": providing.files.requests}
            child = run(given.model_copy(update=update), **more)
        assert providing.peak_bytes == 1502
        return child, providing.fetched

    straight, order = run_provided("straight")
    assert straight.status == 0, straight.stderr
    killed, _ = run_provided("killed", die_at="training.step-18")
    assert killed.status == -signal.SIGKILL, killed.stderr
    newest = killed.checkpoints[max(killed.checkpoints)]
    resumed, again = run_provided("resumed", given={"resume_from": newest})
    assert resumed.status == 0, resumed.stderr
    assert_same_as_uninterrupted([killed, resumed], straight)
    position = json.loads((newest / "corpus.json").read_text())["positions"][0]
    begun = 9 * position["epoch"] + position["file"]
    assert begun > 0
    assert again[0] == order[begun]
    assert len(again) <= len(order) - begun + 3


@pytest.mark.long
def test_checkpoint_without_position_is_refused(make_streamed: MakeInput) -> None:
    """It would train on the beginning of the corpus again."""
    killed = run(make_streamed("killed"), die_at="training.step-5")
    assert killed.status == -signal.SIGKILL, killed.stderr
    (checkpoint,) = killed.checkpoints.values()
    (checkpoint / "corpus.json").unlink()
    resumed = run(make_streamed("resumed", resume_from=checkpoint))
    assert resumed.status != 0
    assert "corpus.json" in resumed.stderr


def test_row_that_cannot_be_read_ends_the_training_with_its_name(
    make_streamed: MakeInput, files: dict[str, Path]
) -> None:
    child_input = make_streamed()
    with files["ds_3"].open("ab") as file:
        file.write(b"caf\xe9\n")
    with pytest.raises(JobError) as caught:
        train(child_input, Recorder())
    assert caught.value.reason == "BAD_DATA"
    assert "training_data[3] row 52 of 3.txt: not UTF-8: byte 0xe9" in caught.value.message
