"""Running totals of a training: those of the job, which travel in its checkpoints, and those of this attempt."""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

CHECKPOINT_FILE = "checkpoint.json"


@dataclass
class Progress:
    """What the steps behind the current weights add up to. A resumed attempt goes on counting here, so that a step
    lost with an attempt and made again counts once."""

    step: int = 0
    epoch: float = 0.0
    loss_sum: float = 0.0
    """Sum of the losses of all steps."""
    num_rows: int = 0
    num_tokens: int = 0
    """Padding not counted."""
    window_loss_sum: float = 0.0
    """The same since the last log event."""
    window_steps: int = 0
    logged_loss: float = math.nan
    """Loss of the last log event."""
    best_eval_loss: float | None = None
    best_step: int = 0
    """0 before the first evaluation."""
    eval_loss: float | None = None
    """Of the last evaluation."""
    eval_step: int = 0
    evaluations_without_improvement: int = 0
    early_stopped: bool = False

    @classmethod
    def read(cls, checkpoint: Path) -> Self:
        """The progress at a checkpoint. Keys of a later version are left out."""
        known = {field.name for field in fields(cls)}
        stored = json.loads((checkpoint / CHECKPOINT_FILE).read_text())
        return cls(**{key: value for key, value in stored.items() if key in known})

    def write(self, checkpoint: Path) -> None:
        """Puts it beside the weights."""
        (checkpoint / CHECKPOINT_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    def evaluated(self, eval_loss: float, threshold: float) -> bool:
        """Notes an evaluation at the current step; True when its loss is the lowest so far.

        A fall by no more than `threshold` makes it the best all the same, but does not end a row of evaluations
        without improvement. NaN is never an improvement.
        """
        self.eval_loss, self.eval_step = eval_loss, self.step
        lowest = math.inf if self.best_eval_loss is None else self.best_eval_loss
        self.evaluations_without_improvement += 1
        if eval_loss < lowest - threshold:
            self.evaluations_without_improvement = 0
        if eval_loss < lowest:
            self.best_eval_loss, self.best_step = eval_loss, self.step
            return True
        return False


@dataclass
class Totals:
    """Sums over the steps of one attempt, or of a part of it."""

    steps: int = 0
    loss_sum: float = 0.0
    num_rows: int = 0
    num_tokens: int = 0
    """Padding not counted."""
    seconds: float = 0.0
    """Of training: loading, evaluation and saving not counted."""

    def since(self, earlier: "Totals") -> "Totals":
        """What was added after `earlier`."""
        return Totals(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)))


def per_second(amount: float, seconds: float) -> float:
    """A rate; 0 where no time has passed."""
    return amount / seconds if seconds > 0 else 0.0
