"""Compares our trainer with a bare TRL script: the same model, rows, settings and seed, on one machine.

`python -m benchmarks.training_speed [--rounds 3] [--steps 16] [--model FOLDER]` prints a table: wall clock and
processor time of a step, peak memory, and whether both adapters have the same bytes. Both sides run on the CPU at the
same time, and take turns step by step. Ours is the trainer's child alone, with rows that are prepared beforehand, as
preflight does it.
"""

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from benchmarks.step_clock import ENTRY_POINTS
from benchmarks.table import Row, show
from engine.config.job import job_config
from engine.data.prepare import prepare
from engine.model.materialise import materialise, packaged_gguf

ROOT = Path(__file__).parents[1]
TEXTS = ROOT / "examples" / "data" / "stdlib_qa_train.jsonl"
LENGTHS: dict[str, tuple[float, float, int]] = {
    "short answers": (60, 0.3, 256),
    "the demo's rows": (90, 0.5, 256),
    "lengths of GSM8K": (215, 0.35, 512),
    "long rows": (480, 0.25, 1024),
    "mixed lengths": (180, 0.9, 1024),
}
"""Median tokens of a row, spread (sigma of a log-normal distribution) and maximum."""
SKIPPED = 2
"""First steps that are not counted: they allocate memory and compile kernels. The last one, with the checkpoint, is not
counted either."""


@dataclass(frozen=True)
class Run:
    """One training of one side."""

    wall: float
    """Seconds per step."""
    processor: float
    """Processor seconds per step."""
    peak_bytes: int
    adapter: str
    """Digest of the adapter's tensors."""
    losses: tuple[float, ...]


def rows(kind: str, count: int) -> Iterator[dict[str, str]]:
    """Yields rows of real text whose lengths have the distribution of that kind."""
    median, spread, most = LENGTHS[kind]
    rng = random.Random(kind)  # noqa: S311
    words = " ".join(json.loads(line)["answer"] for line in TEXTS.read_text().splitlines()).split()
    for number in range(count):
        length = min(rng.lognormvariate(0, spread) * median, most) / 1.6
        start = rng.randrange(len(words) - most)
        half = max(4, int(length / 2))
        prompt = f"{number}. " + " ".join(words[start : start + half]) + "\n"
        yield {"prompt": prompt, "completion": " ".join(words[start + half : start + 2 * half])}


class Bench:
    """The model, and a folder for everything else."""

    def __init__(self, folder: Path, model: Path, steps: int, threads: int, precision: str) -> None:
        self._folder, self._model, self._steps, self._threads, self._precision = (
            folder,
            model,
            steps,
            threads,
            precision,
        )
        site = folder / "site" / "clock-1.0.dist-info"
        site.mkdir(parents=True)
        (site / "METADATA").write_text("Metadata-Version: 2.1\nName: clock\nVersion: 1.0\n")
        (site / "entry_points.txt").write_text(ENTRY_POINTS)
        self._number = 0

    def pair(self, kind: str) -> tuple[Run, Run]:
        """Trains on rows of a kind: the script and ours."""
        file = self._folder / f"{kind}.jsonl"
        if not file.exists():
            file.write_text("".join(json.dumps(row) + "\n" for row in rows(kind, 4 * self._steps + 8)))
        turns = [self._folder / f"turns-{self._number}-{side}" for side in ("script", "ours")]
        for fifo in turns:
            os.mkfifo(fifo)
        # Open at both ends for as long as both run, and the script's turn first.
        opened = [os.open(fifo, os.O_RDWR) for fifo in turns]
        os.write(opened[0], b".")
        script, ours = self._script(kind, file, turns), self._ours(kind, file, turns[::-1])
        found = script.measured(), ours.measured()
        for descriptor in opened:
            os.close(descriptor)
        return found

    def _script(self, kind: str, file: Path, turns: list[Path]) -> "Training":
        out = self._out()
        settings = {
            "model": str(self._model),
            "out": str(out),
            "rows": str(file),
            "steps": self._steps,
            "max_length": LENGTHS[kind][2],
            "rows_per_batch": 4,
            "accumulation": 1,
            "bf16": self._precision == "bf16",
            "checkpointing": False,
            "dropout": 0.05,
            "threads": self._threads,
            "logging_steps": 1,
            "clock": str(out / "clock.json"),
        }
        (out / "settings.json").write_text(json.dumps(settings))
        adapter = out / f"checkpoint-{self._steps}"
        return self._start(out, "benchmarks.bare_training", out / "settings.json", adapter, turns)

    def _ours(self, kind: str, file: Path, turns: list[Path]) -> "Training":
        out = self._out()
        config = job_config(
            {
                "base_model": "m",
                "training_data": [{"dataset": "d"}],
                "method": "lora",
                "holdout_fraction": 0.0,
                "lora": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05},
                "resources": {"gpus": 0},
                "hyperparameters": {
                    "max_steps": self._steps,
                    "max_length": LENGTHS[kind][2],
                    "precision": self._precision,
                    "optim": "adamw_torch",
                    "per_device_train_batch_size": 4,
                    "per_device_eval_batch_size": 4,
                    "gradient_accumulation_steps": 1,
                    "gradient_checkpointing": False,
                    "packing": False,
                    "group_by_length": False,
                    "warmup_steps": 0,
                    "logging_steps": 1,
                    "eval_steps": self._steps,
                    "save_steps": self._steps,
                },
            }
        )
        prepare(config, self._model, {"d": file}, out / "data", lambda *_: None)
        given = {
            "config": config.model_dump(mode="json"),
            "model": {"path": str(self._model), "id": "m", "revision": "r", "weights_sha256": "0" * 64},
            "data_dir": str(out / "data"),
            "out_dir": str(out / "out"),
            "total_steps": self._steps,
            "threads": self._threads,
            "extensions": ["step-clock"],
        }
        (out / "out").mkdir()
        (out / "input.json").write_text(json.dumps(given))
        adapter = out / "out" / "checkpoints" / f"step-{self._steps}"
        return self._start(out, "services.trainer.worker", out / "input.json", adapter, turns)

    def _start(self, out: Path, module: str, settings: Path, adapter: Path, turns: list[Path]) -> "Training":
        environment = {
            **os.environ,
            "CLOCK_FILE": str(out / "clock.json"),
            "CLOCK_TURNS": os.pathsep.join(map(str, turns)),
            "PYTHONPATH": os.pathsep.join([str(self._folder / "site"), str(ROOT)]),
            "HF_HUB_OFFLINE": "1",
        }
        with (out / "log").open("wb") as log:
            command = [sys.executable, "-m", module, str(settings)]
            return Training(subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=out), out, adapter)

    def _out(self) -> Path:
        self._number += 1
        out = self._folder / f"run-{self._number}"
        out.mkdir()
        return out


@dataclass(frozen=True)
class Training:
    """A training that runs in a process of its own."""

    process: subprocess.Popen[bytes]
    out: Path
    adapter: Path

    def measured(self) -> Run:
        """Waits for its end."""
        if self.process.wait():
            raise RuntimeError((self.out / "log").read_text()[-2000:])
        clock = json.loads((self.out / "clock.json").read_text())
        return Run(
            wall=statistics.mean(clock["wall"][SKIPPED:-1]),
            processor=statistics.mean(clock["processor"][SKIPPED:-1]),
            peak_bytes=clock["peak_bytes"],
            adapter=digest(self.adapter / "adapter_model.safetensors"),
            losses=tuple(clock["losses"]),
        )


def digest(adapter: Path) -> str:
    """Returns a digest of the names and values of an adapter."""
    tensors = load_file(adapter)
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].tobytes())
    return found.hexdigest()


def compared(kind: str, pairs: list[tuple[Run, Run]]) -> list[Row]:
    """Returns the ratios ours / script: the medians of the pairs."""

    def ratio(name: str) -> tuple[float, str]:
        values: list[Any] = [(getattr(script, name), getattr(ours, name)) for script, ours in pairs]
        ours = statistics.median(value for _, value in values)
        script = statistics.median(value for value, _ in values)
        each = ", ".join(f"{b / a:.2f}" for a, b in values)
        unit = "s" if name != "peak_bytes" else "GiB"
        scale = 1 if name != "peak_bytes" else 2**30
        return (
            statistics.median(b / a for a, b in values),
            f"{ours / scale:.3g} against {script / scale:.3g} {unit}; {each}",
        )

    found = []
    for name, what, target in (
        ("wall", "wall clock of a step", "<= 0.95"),
        ("processor", "processor time of a step", "<= 0.95"),
        ("peak_bytes", "peak memory", "<= 0.90"),
    ):
        value, beside = ratio(name)
        found.append(Row(f"{kind}: {what}", value, "x", target, beside))
    same = all(script.adapter == ours.adapter for script, ours in pairs)
    difference = max(abs(a - b) for script, ours in pairs for a, b in zip(script.losses, ours.losses, strict=False))
    beside = f"largest difference of a step's loss {difference:.2g}"
    found.append(Row(f"{kind}: adapters with the same bytes", float(same), "", "1 in fp32", beside))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of each kind of rows")
    parser.add_argument("--steps", type=int, default=16, help=f"steps of a run; the first {SKIPPED} are not counted")
    parser.add_argument("--model", type=Path, help="folder of a model; default: the built-in one")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--same-loss", action="store_true", help="let ours compute the loss of every position too: equal bytes"
    )
    parser.add_argument("--only", choices=LENGTHS, action="append", help="kind of rows; repeatable")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = given.model or folder / "model"
        if given.model is None:
            materialise(packaged_gguf(), model)
        if given.same_loss:
            os.environ["CLOCK_SAME_LOSS"] = "1"
        bench = Bench(folder, model.resolve(), given.steps, given.threads, given.precision)
        found = []
        for kind in given.only or LENGTHS:
            found += compared(kind, [bench.pair(kind) for _ in range(given.rounds)])
    show(found)


if __name__ == "__main__":
    main()
