"""Compares the defaults with settings chosen by hand, on five data sets of 20 to 7,000 rows.

`python -m benchmarks.defaults_by_size [--only 20 …]` prints, for each data set, the seconds of training with
evaluations and checkpoints, and the best loss on the same held-out rows. Both jobs train the same rows equally often at
the same learning rate on `ftf up`, one after the other. What differs is what the defaults decide: the sizes of a step
and of a micro-batch, grouping or packing, warm-up, evaluations and checkpoints.
"""

import argparse
import itertools
import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.job_speed import ROOT, system
from benchmarks.table import Row, show
from benchmarks.training_speed import rows
from finetuneflow import Client

EXAMPLES = ROOT / "examples" / "data"
_HELD_OUT = 64


@dataclass(frozen=True)
class DataSet:
    """Rows, and settings chosen for them by hand."""

    rows: Iterator[dict[str, str]]
    """The training rows, then the held-out ones."""
    num_epochs: int
    by_hand: dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """Figures of one training."""

    seconds: float
    steps: int
    loss: float


def _file(name: str) -> Iterator[dict[str, str]]:
    lines = (EXAMPLES / name).read_text().splitlines()
    return map(json.loads, lines)


def _pairs(seed: int) -> list[tuple[int, int]]:
    pairs = list(itertools.product(range(10, 95), range(10, 95)))
    random.Random(seed).shuffle(pairs)  # noqa: S311
    return pairs


def _sums(seed: int) -> Iterator[dict[str, str]]:
    """Yields questions with short answers, each once."""
    return ({"question": f"What is {a} plus {b}?", "answer": f"{a} plus {b} is {a + b}."} for a, b in _pairs(seed))


def _sum_texts(seed: int) -> Iterator[dict[str, str]]:
    """Yields short texts, each once."""
    return ({"text": f"{a} plus {b} is {a + b}."} for a, b in _pairs(seed))


def data_sets() -> dict[int, DataSet]:
    """Returns the data sets by their number of training rows."""
    grouped = {"group_by_length": True, "packing": False, "gradient_accumulation_steps": 1}
    eight, sixteen = grouped | {"per_device_train_batch_size": 8}, grouped | {"per_device_train_batch_size": 16}
    return {
        20: DataSet(
            _file("demo_train.jsonl"), 5,
            grouped | {"per_device_train_batch_size": 4, "warmup_steps": 0, "eval_steps": 5, "save_steps": 5},
        ),
        185: DataSet(_file("stdlib_qa_train.jsonl"), 1, eight | {"warmup_steps": 2, "eval_steps": 4, "save_steps": 4}),
        600: DataSet(
            rows("the demo's rows", 600 + _HELD_OUT), 1, eight | {"warmup_steps": 4, "eval_steps": 15, "save_steps": 15}
        ),
        2000: DataSet(_sums(1), 1, sixteen | {"warmup_steps": 6, "eval_steps": 25, "save_steps": 25}),
        7000: DataSet(_sum_texts(2), 1, sixteen | {"warmup_steps": 14, "eval_steps": 70, "save_steps": 70}),
    }  # fmt: skip


def compared(client: Client, folder: Path, size: int, given: DataSet) -> list[Row]:
    lines = [json.dumps(row) + "\n" for row in itertools.islice(given.rows, size + _HELD_OUT)]
    train, held_out = folder / f"train-{size}.jsonl", folder / f"held-out-{size}.jsonl"
    train.write_text("".join(lines[:size]))
    held_out.write_text("".join(lines[size:]))
    found = []
    for settings in ({}, given.by_hand):
        job = client.jobs.create(
            base_model="smollm2-135m",
            training_data=train,
            evaluation_data=held_out,
            hyperparameters={"num_epochs": given.num_epochs, "precision": "bf16", **settings},
            evaluation={"enabled": False},
        )
        ended = client.jobs.wait(job.id)
        training = ended.training
        if training is None or training.best_eval_loss is None:
            raise RuntimeError(f"{job.id} ended as {ended.state}: {ended.message}")
        found.append(Trained(training.train_runtime_seconds, training.total_steps, training.best_eval_loss))
    ours, theirs = found
    times = f"{ours.seconds:.0f} against {theirs.seconds:.0f} s, {ours.steps:,} against {theirs.steps:,} steps"
    losses = f"{ours.loss:.4f} against {theirs.loss:.4f}"
    return [
        Row(f"{size:,} rows: seconds of training", ours.seconds / theirs.seconds, "x", "none given", times),
        Row(f"{size:,} rows: held-out loss", ours.loss / theirs.loss, "x", "<= 1.01", losses),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sets = data_sets()
    parser.add_argument("--only", type=int, choices=sets, action="append", help="number of rows; repeatable")
    chosen = parser.parse_args().only or sets
    with tempfile.TemporaryDirectory(prefix="finetuneflow-bench-") as name, system(Path(name)) as (client, _):
        for size in chosen:
            show(compared(client, Path(name), size, sets[size]))


if __name__ == "__main__":
    main()
