"""Measures each optimizer step of a training: a callback, and the extension that adds it to one of ours.

Two trainings can take turns: each waits for its turn before a step, so that both have the same share of a machine whose
speed changes from one minute to the next. CLOCK_TURNS then names two FIFOs, the one to wait at and the other's.
"""

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

ENTRY_POINTS = "[finetuneflow.trainer]\nstep-clock = benchmarks.step_clock:extend\n"


class StepClock(TrainerCallback):
    """Writes a JSON object at the end: wall clock and processor time of each step, in seconds, the time when each
    step began, the losses, and the peak memory in bytes. A step lasts from its begin to the begin of the next one."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._walls: list[float] = []
        self._processor: list[float] = []
        self._began: tuple[float, float] | None = None
        self._turns = [os.open(name, os.O_RDWR) for name in os.environ.get("CLOCK_TURNS", "").split(os.pathsep) if name]
        self._begins: list[float] = []

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._end_step()
        if self._turns:
            mine, other = self._turns
            if state.global_step:
                os.write(other, b".")
            os.read(mine, 1)
        self._began = (time.perf_counter(), time.process_time())
        self._begins.append(time.time())

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._end_step()
        if self._turns:
            # The other one needs no more turns of this one.
            os.write(self._turns[1], b"." * 1000)
        self._file.write_text(
            json.dumps(
                {
                    "wall": self._walls,
                    "processor": self._processor,
                    "begins": self._begins,
                    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                    "losses": [entry["loss"] for entry in state.log_history if "loss" in entry],
                }
            )
        )

    def _end_step(self) -> None:
        if self._began:
            self._walls.append(time.perf_counter() - self._began[0])
            self._processor.append(time.process_time() - self._began[1])


def extend(training: Any) -> None:
    """Adds the clock to a `services.trainer.worker.extensions.Training`. CLOCK_SAME_LOSS switches off our way of
    computing the loss, to compare everything else."""
    if os.environ.get("CLOCK_SAME_LOSS"):
        from services.trainer.worker.loss import Trainer

        Trainer.compact_on_cpu = False
    training.callbacks.append(StepClock(Path(os.environ["CLOCK_FILE"])))
