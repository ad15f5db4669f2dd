"""Measures the evaluation: rows scored against a plain loop, and a second evaluation on the same base and rows.

`python -m benchmarks.evaluation` (about 5 minutes). The pairs are measured in turn in one run; only their ratios say
something.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks.table import Row, arguments, show
from chassis.child.phases import Phases
from chassis.child.pipe import EventSink
from engine.catalogue import Catalogue
from engine.config.job import DataSource, JobConfig
from engine.data.prepare import prepare_evaluation
from engine.data.shards import read_shards
from engine.data.tokenizer import Tokenizer
from engine.evaluation.held_out import read_held_out
from engine.model.load import load_base
from engine.model.score import score
from engine.model_names import BUILT_IN
from services.child_input import ModelFiles
from services.evaluator.worker.child_input import Side
from services.evaluator.worker.evaluate import PHASES
from services.evaluator.worker.measure import Measuring
from services.evaluator.worker.measurements import Measurements
from services.evaluator.worker.models import Form, Models
from services.questions import row_question

_ROWS = Path(__file__).parents[1] / "examples" / "data" / "stdlib_qa_heldout.jsonl"
_PLAIN_BATCH = 8
_ANSWERED = 16
_NEW_TOKENS = 32


def main() -> list[Row]:
    rounds = arguments(rounds=3, seconds=0).rounds
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory(prefix="finetuneflow-bench-") as name:
        found = Catalogue(Path(name)).fetch(BUILT_IN)
        config = JobConfig(base_model=BUILT_IN)
        data = Path(name, "data")
        prepare_evaluation(config, [DataSource(dataset="rows")], found.path, {"rows": _ROWS}, data, lambda *_: None)
        rows = list(read_shards(data / "eval"))
        tokenizer = Tokenizer(found.path)
        asked = [row_question(row, tokenizer).prompt for row in read_held_out(data / "eval_rows.jsonl")[:_ANSWERED]]
        model = load_base(found.path, dtype=torch.float32, on="cpu")
        side = Side(id=BUILT_IN, model=ModelFiles(**vars(found)))
        return [
            *_scoring(model, rows, rounds),
            _second(side, rows, asked, sorted(tokenizer.special_ids), Path(name, "kept")),
        ]


def _scoring(model: Any, rows: Sequence[Any], rounds: int) -> list[Row]:
    losses: dict[str, float] = {}
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for name, measure in (("ours", _ours), ("theirs", _plain_loop)):
            began = time.perf_counter()
            losses[name] = measure(model, rows)
            times[name].append(time.perf_counter() - began)
    ours, theirs = (len(rows) / statistics.median(times[name]) for name in ("ours", "theirs"))
    difference = abs(losses["ours"] - losses["theirs"])
    beside = f"{ours:.2f} against {theirs:.2f} rows/s, {len(rows)} rows"
    return [
        Row("rows scored a second", ours / theirs, "x a plain batched loop", ">= 1", beside),
        Row("difference of the losses", difference, "nats", "<= 1e-5", f"{losses['ours']:.6f}"),
    ]


def _ours(model: Any, rows: Sequence[Any]) -> float:
    return score(model, rows, lambda _: None).loss


def _plain_loop(model: Any, rows: Sequence[Any]) -> float:
    """What one would write: batches in the order of the rows, padded on the right."""
    total, trained = 0.0, 0
    for start in range(0, len(rows), _PLAIN_BATCH):
        batch = rows[start : start + _PLAIN_BATCH]
        width = max(len(row["input_ids"]) for row in batch)
        ids = torch.tensor([[*row["input_ids"], *[0] * (width - len(row["input_ids"]))] for row in batch])
        mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in batch])
        labels = torch.tensor([[*row["labels"], *[-100] * (width - len(row["labels"]))] for row in batch])
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        total += functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum").item()
        trained += int((labels[:, 1:] != -100).sum())
    return total / trained


def _second(side: Side, rows: Sequence[Any], asked: Sequence[Sequence[int]], stops: Sequence[int], kept: Path) -> Row:
    files: list[Path] = []
    seconds = []
    for number in range(2):
        sink = EventSink(None, None)
        folder = kept / str(number)
        measurements = Measurements(list(files), folder, files.append)
        measuring = Measuring(Models(sink), measurements, Phases(sink, PHASES, pausable=False))
        form = Form(torch.float32, "cpu")
        began = time.perf_counter()
        measuring.losses("scoring_base", side, form, rows)
        measuring.answers("answering_base", side, form, asked, _NEW_TOKENS, stops)
        seconds.append(time.perf_counter() - began)
    beside = f"{seconds[1]:.2f} against {seconds[0]:.1f} s, {len(rows)} losses and {len(asked)} answers"
    return Row("base part of a second job", seconds[1] / seconds[0], "x the first", "<= 0.05", beside)


if __name__ == "__main__":
    show(main())
