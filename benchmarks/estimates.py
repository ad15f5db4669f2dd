"""Compares estimated with measured memory, for small models of several families and training methods.

`python -m benchmarks.estimates` runs every configuration in its own process, one after the other, and writes the tables
of docs/estimates.md; `--only N` runs every N-th configuration.
"""

import argparse
import hashlib
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.training_memory import Configuration
from engine.config.job import job_config
from engine.estimate.architecture import Architecture
from engine.estimate.matrix import matrix
from engine.estimate.memory import Estimator, Setup

DOCUMENT = Path(__file__).parents[1] / "docs" / "estimates.md"
AIMS = {"parameters": 0.03, "optimizer": 0.03, "saved": 0.03, "peak": 0.10}
QUANTITIES = tuple(AIMS)
SIGNS = {"comfortable": "✅", "tight": "⚠️", "impossible": "❌"}


def configurations() -> list[Configuration]:
    """Returns configurations that vary each dimension alone, and the combinations that interact."""
    return list(dict.fromkeys(_configurations()))


def _configurations() -> Iterator[Configuration]:
    families = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
    base = Configuration()
    for family, method, checkpointing in itertools.product(families, ("lora", "full"), (False, True)):
        yield replace(base, family=family, method=method, checkpointing=checkpointing)
    for family, checkpointing in itertools.product(("llama", "qwen3", "gemma2", "phi3"), (False, True)):
        yield replace(base, family=family, precision="bf16", checkpointing=checkpointing)
    for family in ("llama", "gemma3"):
        yield replace(base, family=family, method="full", precision="bf16")
    for rows, length in ((1, 1024), (2, 512), (8, 128), (8, 256), (16, 96)):
        yield replace(base, rows=rows, length=length)
    for r, dropout in ((4, 0.0), (64, 0.05), (16, 0.0), (128, 0.1)):
        yield replace(base, r=r, dropout=dropout)
    for optimizer in ("adafactor", "sgd", "adamw_torch_fused", "adamw_8bit"):
        yield replace(base, method="full", optimizer=optimizer)
    for checkpointing, double_quant in ((False, True), (True, True), (False, False)):
        yield replace(base, method="qlora", checkpointing=checkpointing, double_quant=double_quant)
    yield replace(base, method="qlora", precision="bf16")
    yield replace(base, method="qlora", family="qwen2", bits=8)
    yield replace(base, method="full", accumulation=2)
    yield replace(base, vocabulary=49152, trained_share=0.9)
    yield replace(base, vocabulary=32768, trained_share=0.2, method="full")
    for checkpointing in (False, True):
        yield replace(base, family="smollm2-135m", checkpointing=checkpointing)
    for precision in ("fp32", "bf16"):
        yield replace(base, family="smollm2-135m", method="qlora", precision=precision, rows=2, length=128)


def inl_configurations() -> list[Configuration]:
    """Returns trainings of INL models, whose figures are in the text of docs/estimates.md and not in its table."""
    base = Configuration(rows=2, length=512, checkpointing=True)
    return [
        replace(base, family="inl-small", method="full"),
        replace(base, family="inl-medium", method="full"),
        replace(base, family="inl-medium"),
        replace(base, family="inl-small", method="full", checkpointing=False),
        replace(base, family="inl-small", checkpointing=False),
        replace(base, family="inl-small"),
    ]


@dataclass(frozen=True)
class Outcome:
    """The result of one configuration; predicted and measured map the name of a quantity to bytes."""

    configuration: Configuration
    predicted: dict[str, int]
    measured: dict[str, int]
    upper_bytes: int

    def error(self, quantity: str) -> float:
        """Returns the error of the estimate as a share of the measured value."""
        return self.predicted[quantity] / self.measured[quantity] - 1 if self.measured[quantity] else 0.0


def compare(configuration: Configuration, seen: dict[str, Any]) -> Outcome:
    """Estimates the memory of the measured batch and returns both."""
    architecture = Architecture.from_config(configuration.model_config)
    setup = replace(
        Setup.of(job_config(configuration.spec), on_gpu=False, length=seen["length"]),
        padded=seen["padded"],
        trained_share=seen["positions"] / (configuration.rows * (seen["length"] - 1)),
    )
    estimator = Estimator(architecture, setup)
    memory = estimator.memory()
    return Outcome(
        configuration,
        {
            "parameters": estimator.weights + estimator.adapters,
            "optimizer": estimator.optimizer,
            "saved": estimator.saved + estimator.head_saved,
            "peak": memory.total_bytes,
        },
        {
            "parameters": seen["base_bytes"] + (seen["trained_bytes"] if configuration.method != "full" else 0),
            "optimizer": seen["optimizer_bytes"],
            "saved": seen["saved_bytes"],
            "peak": seen["peak_bytes"],
        },
        memory.upper_bytes,
    )


def run(configuration: Configuration, models: Path) -> dict[str, Any]:
    """Runs benchmarks.training_memory in a new process and returns its figures; `models` caches the models."""
    name = hashlib.sha256(json.dumps(configuration.model_config, sort_keys=True).encode()).hexdigest()[:16]
    model = models / name
    if not model.exists():
        _started(configuration, model)
    seen: dict[str, Any] = json.loads(_started(configuration, model).splitlines()[-1])
    return seen


def _started(configuration: Configuration, model: Path) -> str:
    command = [sys.executable, "-m", "benchmarks.training_memory", json.dumps(asdict(configuration)), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode != 0:
        raise RuntimeError(f"{configuration} could not be measured:\n{done.stderr[-3000:]}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=int, default=1, help="run every N-th configuration, and write nothing")
    parser.add_argument(
        "--raw", type=Path, help="file (JSON lines) to read earlier measurements from and append new ones to"
    )
    parser.add_argument("--inl", action="store_true", help="run those of INL models, and write nothing")
    options = parser.parse_args(arguments)
    known = {}
    if options.raw and options.raw.exists():
        lines = [json.loads(line) for line in options.raw.read_text("utf-8").splitlines()]
        known = {Configuration(**line["configuration"]): line for line in lines}
    outcomes = []
    with tempfile.TemporaryDirectory() as models:
        for configuration in inl_configurations() if options.inl else configurations()[:: options.only]:
            seen = known.get(configuration)
            if seen is None:
                seen = run(configuration, Path(models))
                if options.raw:
                    with options.raw.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(seen) + "\n")
            outcomes.append(compare(configuration, seen))
            print(" | ".join(row(outcomes[-1])), flush=True)
    print("\n".join(summary(outcomes)))
    if options.only == 1 and not options.inl:
        text = replaced(DOCUMENT.read_text("utf-8"), "measured", [*summary(outcomes), "", *table(outcomes)])
        DOCUMENT.write_text(replaced(text, "matrix", matrix_lines()), "utf-8")


def replaced(text: str, name: str, lines: Sequence[str]) -> str:
    """Returns `text` with the lines between the markers of that name replaced."""
    begin, end = f"<!-- {name}: generated -->", f"<!-- end of {name} -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return "\n".join([before + begin, *lines, end + after])


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns the lines of the summary: how often each aim is met, and the worst error."""
    lines = ["| quantity | aim | met | mean error | worst | where |", "|---|---|---|---|---|---|"]
    for quantity, aim in AIMS.items():
        told = [outcome for outcome in outcomes if outcome.measured[quantity]]
        errors = [outcome.error(quantity) for outcome in told]
        worst = max(told, key=lambda outcome: abs(outcome.error(quantity)))
        met = sum(abs(error) <= aim for error in errors)
        mean = sum(map(abs, errors)) / len(errors)
        place = ", ".join(cell for cell in row(worst)[:6] if cell)
        cells = [f"{aim:.0%}", f"{met} of {len(told)}", f"{mean:.1%}", f"{worst.error(quantity):+.1%}", place]
        lines.append(f"| {quantity} | ≤ {' | '.join(cells)} |")
    held = sum(outcome.measured["peak"] <= outcome.upper_bytes for outcome in outcomes)
    lines += ["", f"The upper bound held in {held} of {len(outcomes)} trainings."]
    return lines


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns the lines of the table: measured MiB, with the error of the estimate in brackets."""
    head = ["family", "method", "precision", "batch", "checkpointing", "other", *QUANTITIES, "upper bound"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return [*lines, *(f"| {' | '.join(row(outcome))} |" for outcome in outcomes)]


def matrix_lines() -> list[str]:
    """Returns the lines of the decision matrix, with the seed's answers where they differ and the reasons."""
    rows = matrix()
    lines = [f"| free | {' | '.join(f'{cell.column} ({cell.model})' for cell in rows[0])} |", "|---|---|---|---|---|"]
    for cells in rows:
        texts = [
            _sign(c.method, c.verdict) + (f" (seed: {_sign(c.seed_method, c.seed_verdict)})" if c.difference else "")
            for c in cells
        ]
        lines.append(f"| {cells[0].band} GiB | {' | '.join(texts)} |")
    differing = [cell for cells in rows for cell in cells if cell.difference]
    return [*lines, "", *(f"- {c.band} GiB, {c.column}: {c.difference}" for c in differing)]


def _sign(method: str | None, verdict: str) -> str:
    title = {"lora": "LoRA", "qlora": "QLoRA", "full": "full"}.get(method or "", "")
    return f"{title} {SIGNS[verdict]}".strip()


def row(outcome: Outcome) -> list[str]:
    c = outcome.configuration
    way = c.method + (f" {c.bits} bit" if c.method == "qlora" else f" r {c.r}" if c.method == "lora" else "")
    cells = [c.family, way, c.precision, f"{c.rows} × {c.length}", "yes" if c.checkpointing else "no"]
    usual = Configuration()
    rest = [c.optimizer] if c.optimizer != usual.optimizer else []
    rest += [f"dropout {c.dropout}"] if c.dropout != usual.dropout else []
    rest += [f"vocabulary {c.vocabulary}"] if c.vocabulary != usual.vocabulary else []
    rest += [f"{c.accumulation} micro-batches"] if c.accumulation != 1 else []
    rest += [] if c.double_quant else ["no double quantization"]
    cells.append(", ".join(rest))
    for quantity in QUANTITIES:
        measured = outcome.measured[quantity] / 2**20
        cells.append(f"{measured:.1f} ({outcome.error(quantity):+.1%})" if measured else "none")
    cells.append(f"{outcome.upper_bytes / 2**20:.0f}")
    return cells


if __name__ == "__main__":
    main()
