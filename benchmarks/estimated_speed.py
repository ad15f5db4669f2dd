"""Compares estimated with measured speeds of trainings on a CPU, for Llama and INL models.

`python -m benchmarks.estimated_speed [--rounds 2] [--steps 8] [--only NAME]` trains each configuration with the
trainer's own child, in turns, and prints a table: tokens per second as estimated, and as measured in the median step of
all rounds. An estimate assumes an idle machine. On one that other programs use, compare with `per processor`, the
tokens of a processor's second; with `--threads 1` no thread waits for another. `processors` is the share that the steps
had.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.step_clock import ENTRY_POINTS
from benchmarks.training_memory import Configuration, write_rows
from engine.config.job import job_config
from engine.estimate.architecture import Architecture
from engine.estimate.duration import Calibration, predict_speed
from engine.estimate.machine import Machine
from engine.estimate.memory import Setup
from services.attempt_inputs import child_environment
from services.hardware import read_hardware
from services.trainer.settings import TrainerSettings

ROOT = Path(__file__).parents[1]
SKIPPED = 1
"""First steps that are not counted: they allocate memory. The last one, with the checkpoint, is not counted either."""


def configurations() -> dict[str, Configuration]:
    """Returns the configurations by name."""
    small = Configuration(family="inl-small", vocabulary=49152, trained_share=0.9)
    tiny = replace(small, family="inl", hidden=256, layers=4)
    llama = replace(small, family="smollm2-135m")
    found = [
        replace(small, precision="fp32"),
        replace(small, precision="bf16"),
        replace(small, method="full"),
        replace(small, method="full", precision="bf16"),
        replace(small, method="full", rows=1, length=512, checkpointing=True),
        replace(small, rows=8, length=64, precision="bf16"),
        replace(tiny, precision="bf16"),
        replace(tiny, method="full"),
        replace(small, family="inl-medium", rows=2, precision="bf16"),
        replace(small, family="inl-medium", method="full", rows=2),
        replace(llama, precision="fp32"),
        replace(llama, precision="bf16"),
        replace(llama, method="full", rows=2, length=128),
        replace(small, family="llama"),
        replace(small, family="llama", method="full", precision="bf16"),
    ]
    return {name(configuration): configuration for configuration in found}


def name(c: Configuration) -> str:
    again = ", recomputed" if c.checkpointing else ""
    return f"{c.family} {c.method} {c.precision} {c.rows} × {c.length}{again}"


@dataclass(frozen=True)
class Measured:
    """The steps of one training."""

    walls: list[float]
    """Seconds of each step."""
    processor: list[float]
    """Processor seconds of each step."""
    peak_bytes: int


class Bench:
    """Trains configurations, each in a process of its own."""

    def __init__(self, folder: Path, steps: int, threads: int) -> None:
        self._folder, self._steps, self._threads = folder, steps, threads
        site = folder / "site" / "clock-1.0.dist-info"
        site.mkdir(parents=True)
        (site / "METADATA").write_text("Metadata-Version: 2.1\nName: clock\nVersion: 1.0\n")
        (site / "entry_points.txt").write_text(ENTRY_POINTS)

    def train(self, configuration: Configuration, environment: dict[str, str]) -> Measured:
        """Trains one configuration with these variables beside the usual ones of a child."""
        model = self._folder / json.dumps(configuration.model_config, sort_keys=True).translate(_NAMES)[:200]
        if not model.exists():
            command = ["-m", "benchmarks.training_memory", json.dumps(asdict(configuration)), str(model)]
            subprocess.run([sys.executable, *command], check=True, cwd=ROOT, capture_output=True)
        with tempfile.TemporaryDirectory(dir=self._folder) as work:
            return self._trained(configuration, model, Path(work), environment)

    def _trained(self, c: Configuration, model: Path, work: Path, environment: dict[str, str]) -> Measured:
        write_rows(c, c.rows * c.accumulation * self._steps, work / "data")
        given: dict[str, Any] = {
            "config": job_config({**c.spec, "resources": {"gpus": 0}}).model_dump(mode="json"),
            "model": {"path": str(model), "id": "m", "revision": "r", "weights_sha256": "0" * 64},
            "data_dir": str(work / "data"),
            "out_dir": str(work / "out"),
            "total_steps": self._steps,
            "threads": self._threads,
            "extensions": ["step-clock"],
        }
        given["config"]["hyperparameters"]["max_steps"] = self._steps
        (work / "out").mkdir()
        (work / "input.json").write_text(json.dumps(given))
        clock = work / "clock.json"
        variables = {
            **os.environ,
            **child_environment(TrainerSettings(threads=self._threads)),
            "CLOCK_FILE": str(clock),
            "PYTHONPATH": os.pathsep.join([str(self._folder / "site"), str(ROOT)]),
            "HF_HUB_OFFLINE": "1",
            **environment,
        }
        command = [sys.executable, "-m", "services.trainer.worker", str(work / "input.json")]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, cwd=work)
        if done.returncode != 0:
            raise RuntimeError(f"{c} could not be trained:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
        seen = json.loads(clock.read_text())
        return Measured(seen["wall"][SKIPPED:-1], seen["processor"][SKIPPED:-1], seen["peak_bytes"])


_NAMES = str.maketrans("", "", '{}":, ')


def estimated(configuration: Configuration) -> float:
    """Returns the tokens per second that are expected of this machine before a training was measured on it."""
    setup = replace(
        Setup.of(job_config(configuration.spec), on_gpu=False, length=configuration.length),
        trained_share=configuration.trained_share,
    )
    machine = Machine.of(read_hardware("", Path.home()), gpus=0)
    architecture = Architecture.from_config(configuration.model_config)
    return predict_speed(architecture, setup, machine, Calibration()).tokens_per_second.likely


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="trainings of each configuration")
    parser.add_argument("--steps", type=int, default=8, help=f"steps of a training; the first {SKIPPED} do not count")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", help="part of the names of the configurations to train")
    parser.add_argument("--raw", type=Path, help="file (JSON lines) to append the times of the steps to")
    parser.add_argument("--environment", action="append", default=[], help="NAME=VALUE of a training; repeatable")
    given = parser.parse_args()
    chosen = {name: c for name, c in configurations().items() if not given.only or given.only in name}
    environment = dict(entry.split("=", 1) for entry in given.environment)
    runs: dict[str, list[Measured]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.steps, given.threads)
        for _ in range(given.rounds):
            for key, configuration in chosen.items():
                runs[key].append(bench.train(configuration, environment))
                if given.raw:
                    seen = {"name": key, "load": os.getloadavg(), "threads": given.threads, **asdict(runs[key][-1])}
                    with given.raw.open("a") as file:
                        file.write(json.dumps(seen) + "\n")
    print("| training | estimated | measured | estimated per core | per processor | ratio | processors | peak, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for key, configuration in chosen.items():
        print(f"| {key} | {' | '.join(cells(configuration, runs[key]))} |")


def cells(configuration: Configuration, runs: list[Measured]) -> list[str]:
    """Returns the cells of a configuration's row; the ratio is of the speeds of one core."""
    wall = statistics.median(seconds for run in runs for seconds in run.walls)
    processor = statistics.median(seconds for run in runs for seconds in run.processor)
    tokens, likely = configuration.rows * configuration.length, estimated(configuration)
    core = likely / read_hardware("", Path.home()).cpu_cores
    peak = statistics.median(run.peak_bytes for run in runs) / 2**20
    figures = [f"{value:.0f}" for value in (likely, tokens / wall, core, tokens / processor)]
    return [*figures, f"{core * processor / tokens:.2f}", f"{processor / wall:.2f}", f"{peak:.0f}"]


if __name__ == "__main__":
    main()
