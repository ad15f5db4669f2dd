"""Measures each optimizer step of a training: a callback, and the extension that adds it to one of ours."""

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

ENTRY_POINTS = "[finetuneflow.trainer]\nstep-clock = benchmarks.step_clock:extend\n"


class StepClock(TrainerCallback):
    """Writes a JSON object at the end: the wall clock and processor time, in seconds, at the beginning of each step and
    at the end of the last one, the number of tokens that count, and the peak memory in bytes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._walls: list[float] = []
        self._processor: list[float] = []

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._note()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._file.write_text(
            json.dumps(
                {
                    "wall": self._walls,
                    "processor": self._processor,
                    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                    "losses": [entry["loss"] for entry in state.log_history if "loss" in entry],
                }
            )
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == state.max_steps:
            self._note()

    def _note(self) -> None:
        self._walls.append(time.time())
        self._processor.append(time.process_time())


def extend(training: Any) -> None:
    """Adds the clock to a `services.trainer.worker.extensions.Training`."""
    training.callbacks.append(StepClock(Path(os.environ["CLOCK_FILE"])))
