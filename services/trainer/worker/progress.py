"""Running totals of a training: of the job, stored in its checkpoints, and of this attempt."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Self

CHECKPOINT_FILE = "checkpoint.json"


@dataclass
class Progress:
    """Totals over the steps behind the current weights.

    A resumed attempt continues them, so that a step that was lost with an attempt and repeated counts once.
    """

    step: int = 0
    epoch: float = 0.0
    loss_sum: float = 0.0
    """Sum of the losses of all steps."""
    num_rows: int = 0
    num_tokens: int = 0
    """Padding not counted."""
    window_loss_sum: float = 0.0
    """Sum of the losses since the last log event."""
    window_steps: int = 0
    logged_loss: float = math.nan
    """Loss of the last log event."""
    best_eval_loss: float | None = None
    best_step: int = 0
    """0 before the first evaluation."""
    eval_loss: float | None = None
    """Loss of the last evaluation."""
    eval_step: int = 0
    evaluations_without_improvement: int = 0
    early_stopped: bool = False
    recent_losses: list[float] = field(default_factory=list)
    """Losses of the latest steps, by which a spike is recognised."""

    @classmethod
    def read(cls, checkpoint: Path) -> Self:
        """Reads the totals of a checkpoint. Ignores keys of a later version."""
        known = {each.name for each in fields(cls)}
        stored = json.loads((checkpoint / CHECKPOINT_FILE).read_text())
        return cls(**{key: value for key, value in stored.items() if key in known})

    def write(self, checkpoint: Path) -> None:
        """Writes the totals into a checkpoint."""
        (checkpoint / CHECKPOINT_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    def evaluated(self, eval_loss: float, threshold: float) -> bool:
        """Records an evaluation at the current step. Returns True if its loss is the lowest so far.

        A decrease by at most `threshold` makes it the best, but does not reset the count of evaluations without
        improvement. NaN is never an improvement.
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
    """Totals over the steps of one attempt, or of a part of it."""

    steps: int = 0
    loss_sum: float = 0.0
    num_rows: int = 0
    num_tokens: int = 0
    """Padding not counted."""
    num_padded_tokens: int = 0
    """Padding counted."""
    seconds: float = 0.0
    """Training time, without loading, evaluation and saving."""

    def since(self, earlier: "Totals") -> "Totals":
        """Returns the difference to `earlier`."""
        return Totals(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)))


def per_second(amount: float, seconds: float) -> float:
    """Returns a rate; 0 if no time has passed."""
    return amount / seconds if seconds > 0 else 0.0
