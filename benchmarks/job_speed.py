"""Compares a whole job, from its creation, with a bare TRL script from its start, in turns, on one machine.

`python -m benchmarks.job_speed same|defaults [--rounds 1] [--rows 256]`

same      the demo's rows, recipe cpu-demo, and a script with the same settings: time to the first step, time to the end
          of training, and what the other stages take against the same by hand in the script's process.
defaults  rows with the lengths of GSM8K, one epoch: our defaults against a script with the fixed settings of the recipe
          finetuneflow, by trained rows' tokens per second and by the loss of both adapters on the same held-out rows.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.stack import Part
from benchmarks.table import Row, show
from benchmarks.training_speed import rows
from engine.model import load
from engine.model.adapter import load_adapter
from engine.model.score import score
from finetuneflow import Client
from finetuneflow.resources.event import Event
from finetuneflow.resources.stage_result import TrainingResult
from standalone.ports import free_port

ROOT = Path(__file__).parents[1]
DEMO, DEMO_HELD_OUT = (ROOT / "examples" / "data" / name for name in ("demo_train.jsonl", "demo_heldout.jsonl"))
DEMO_SETTINGS: dict[str, Any] = {
    "steps": 48,
    "max_length": 128,
    "rows_per_batch": 8,
    "accumulation": 1,
    "learning_rate": 5e-4,
    "group_by_length": True,
    "checkpointing": False,
    "dropout": 0.0,
    "eval_steps": 24,
    "save_steps": 24,
    "logging_steps": 1,
}
"""Those of the recipe cpu-demo, for its 384 rows."""
HELD_OUT_ROWS = 64


@dataclass(frozen=True)
class Times:
    """Seconds of one run."""

    first_step: float
    """From creation, or the start of the script, to the start of the first step."""
    trained: float
    """From creation, or the start of the script, to the end of training."""
    other_stages: float
    """Preflight, evaluation and export."""
    adapter: Path
    """Folder of the trained adapter."""
    training: float
    """From the start of the first step to the end of training, with evaluations and checkpoints."""
    steps: float
    """The steps alone."""
    peak_bytes: int
    """Peak memory of the process that trains."""


@contextmanager
def system(folder: Path) -> Iterator[tuple[Client, Path]]:
    """Runs a system; yields a client and the folder of the built-in model."""
    home = folder / "home"
    with Part("finetuneflow.cli", "up", "--home", home, "--port", free_port(), "--json", log=folder / "up.log") as up:
        status = up.hear()
        while status["state"] != "up":
            status = up.hear()
        with Client(status["address"]) as client:
            # Unpacks the model, and leaves warm processes, as on a system that has been running.
            _training(client, _demo_job(client, {"max_steps": 1, "max_length": 127}))
            (model,) = (found.parent for found in (home / "models").rglob("config.json"))
            yield client, model


def _demo_job(client: Client, hyperparameters: dict[str, Any]) -> str:
    return client.jobs.create(
        base_model="smollm2-135m",
        training_data=DEMO,
        evaluation_data=DEMO_HELD_OUT,
        recipe="cpu-demo",
        hyperparameters=hyperparameters,
    ).id


def _training(client: Client, job: str) -> TrainingResult:
    """Waits for the end of a job, and returns the result of its training."""
    ended = client.jobs.wait(job)
    if ended.state != "SUCCEEDED" or ended.training is None:
        raise RuntimeError(f"{job} ended as {ended.state}: {ended.message}")
    return ended.training


def ours(client: Client, began: float, job: str, folder: Path) -> Times:
    """Waits for a job that was created at `began`, in seconds since the epoch, and logs each step."""
    result = _training(client, job)
    events = list(client.jobs.watch(job))

    def first(kind: str, stage: str) -> Event:
        """Returns the stage's first event of a kind."""
        return next(event for event in events if event.kind == kind and event.stage == stage)

    def at(kind: str, stage: str) -> float:
        when = first(kind, stage).event_time
        assert when
        return when.timestamp()

    first_step = at("log", "TRAINING") - first("log", "TRAINING").log.seconds_per_step
    checked, trained = at("stage_completed", "PREFLIGHT"), at("stage_completed", "TRAINING")
    ended = at("stage_completed", "EXPORT")
    client.jobs.download(job, folder)
    (adapter,) = (found.parent for found in folder.rglob("adapter_model.safetensors"))
    return Times(
        first_step=first_step - began,
        trained=trained - began,
        other_stages=(checked - began) + (ended - trained),
        adapter=adapter,
        training=at("complete", "TRAINING") - first_step,
        steps=result.train_runtime_seconds,
        peak_bytes=result.peak_memory_bytes,
    )


def script(model: Path, folder: Path, settings: dict[str, Any]) -> Times:
    """Runs the bare script."""
    folder.mkdir()
    given = settings | {
        "model": str(model),
        "out": str(folder),
        "bf16": False,
        "threads": os.cpu_count() or 1,
        "clock": str(folder / "clock.json"),
        "afterwards": str(folder / "afterwards.json"),
    }
    (folder / "settings.json").write_text(json.dumps(given))
    began = time.time()
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "benchmarks.bare_training", str(folder / "settings.json")]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        subprocess.run(command, env=environment, stdout=log, stderr=log, check=True)
    clock = json.loads((folder / "clock.json").read_text())
    afterwards = json.loads((folder / "afterwards.json").read_text())
    return Times(
        first_step=clock["begins"][0] - began,
        trained=afterwards["began"] - began,
        other_stages=afterwards["seconds"],
        adapter=folder / f"checkpoint-{settings['steps']}",
        training=afterwards["began"] - clock["begins"][0],
        steps=sum(clock["wall"]),
        peak_bytes=clock["peak_bytes"],
    )


def ratio(what: str, target: str, pairs: list[tuple[float, float]], unit: str = "s") -> Row:
    """Returns the median of ours / the script's, of pairs (ours, the script's)."""
    value = statistics.median(ours / script for ours, script in pairs)
    beside = ", ".join(f"{ours:.2f} against {script:.2f} {unit}" for ours, script in pairs)
    return Row(what, value, "x", target, beside)


def same(folder: Path, rounds: int) -> list[Row]:
    with system(folder) as (client, model):
        pairs = []
        settings = DEMO_SETTINGS | {
            "rows": str(_conversations(DEMO, folder / "train.jsonl")),
            "held_out": str(_conversations(DEMO_HELD_OUT, folder / "held_out.jsonl")),
        }
        for number in range(rounds):
            bare = script(model, folder / f"script-{number}", settings)
            began = time.time()
            job = _demo_job(client, {"logging_steps": 1})
            pairs.append((ours(client, began, job, folder / f"ours-{number}"), bare))
    # The shards of the first round are those of the others.
    return [
        ratio("create to first step", "<= 0.25", [(a.first_step, b.first_step) for a, b in pairs[:1]]),
        *(
            [ratio("the same, shards known", "<= 0.15", [(a.first_step, b.first_step) for a, b in pairs[1:]])]
            if pairs[1:]
            else []
        ),
        ratio("create to end of training", "<= 0.90", [(a.trained, b.trained) for a, b in pairs]),
        ratio("preflight, evaluation, export", "<= 1.3", [(a.other_stages, b.other_stages) for a, b in pairs]),
        ratio("peak memory", "<= 0.90", [(a.peak_bytes / 2**30, b.peak_bytes / 2**30) for a, b in pairs], "GiB"),
    ]


def _conversations(file: Path, copy: Path) -> Path:
    """Writes questions and answers as TRL reads them."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    copy.write_text(
        "".join(
            json.dumps(
                {
                    "prompt": [{"role": "user", "content": row["question"]}],
                    "completion": [{"role": "assistant", "content": row["answer"]}],
                }
            )
            + "\n"
            for row in rows
        )
    )
    return copy


def defaults(folder: Path, rounds: int, count: int) -> list[Row]:
    train, held_out = folder / "train.jsonl", folder / "held_out.jsonl"
    lines = [json.dumps(row) + "\n" for row in rows("lengths of GSM8K", count + HELD_OUT_ROWS)]
    train.write_text("".join(lines[:count]))
    held_out.write_text("".join(lines[count:]))
    settings = {
        "rows": str(train),
        "held_out": str(held_out),
        "steps": count // 16,
        "max_length": 2048,
        "rows_per_batch": 4,
        "accumulation": 4,
        "checkpointing": True,
        "dropout": 0.05,
        "eval_steps": 100,
        "logging_steps": 1,
    }
    speeds, whole, losses = [], [], []
    with system(folder) as (client, model):
        for number in range(rounds):
            bare = script(model, folder / f"script-{number}", settings)
            began = time.time()
            job = client.jobs.create(
                base_model="smollm2-135m",
                training_data=train,
                evaluation_data=held_out,
                hyperparameters={"num_epochs": 1, "precision": "fp32", "logging_steps": 1},
                evaluation={"num_samples": 1},
            ).id
            tuned = ours(client, began, job, folder / f"ours-{number}")
            speeds.append((tuned.steps, bare.steps))
            whole.append((tuned.training, bare.training))
            losses.append(tuple(_held_out_loss(model, each.adapter, held_out) for each in (tuned, bare)))
            steps = _training(client, job).total_steps
    times = [
        ratio("the steps, seconds", "<= 0.56 (1.8 times as fast)", speeds),
        ratio("the same with evaluations and checkpoints", "none given", whole),
    ]
    beside = ", ".join(f"{a:.3f} against {b:.3f}" for a, b in losses) + f"; {steps} against {settings['steps']} steps"
    return [*times, Row("held-out loss", statistics.median(a / b for a, b in losses), "x", "<= 1.01", beside)]


def _held_out_loss(model: Path, adapter: Path, held_out: Path) -> float:
    """Returns the mean loss over the tokens of the held-out completions."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    encoded = []
    for line in held_out.read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]
        completion = tokenizer(row["completion"])["input_ids"] + [tokenizer.eos_token_id]
        encoded.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion})
    base = load.load_base(model, dtype=torch.float32, on="cpu")
    return score(load_adapter(base, adapter), encoded, lambda _: None).loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("same", "defaults"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rows", type=int, default=256, help="training rows of `defaults`")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finetuneflow-bench-") as name:
        folder = Path(name)
        show(same(folder, given.rounds) if given.what == "same" else defaults(folder, given.rounds, given.rows))


if __name__ == "__main__":
    main()
