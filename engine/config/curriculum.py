"""How long the phases of a curriculum take, and where a step lies in them: for whoever counts and whoever trains."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from engine.config.job import Hyperparameters, JobConfig


@dataclass(frozen=True)
class Curriculum:
    """Phases as one run of sequences, each phase behind the one before. Steps are full: one that begins with the last
    sequences of a phase goes on with the first ones of the next."""

    names: list[str]
    epochs: list[float]
    sequences: list[int]
    """Of one epoch of each phase: rows, or packs of them."""
    per_step: int
    """Sequences of an optimizer step."""

    @classmethod
    def of(cls, config: JobConfig, sequences: Sequence[int]) -> "Curriculum":
        """Of a job with phases."""
        hyper = config.hyperparameters
        return cls(
            [phase.display_name for phase in config.phases],
            [phase.num_epochs for phase in config.phases],
            list(sequences),
            hyper.per_device_train_batch_size * hyper.gradient_accumulation_steps,
        )

    @property
    def taken(self) -> list[int]:
        """Sequences that are trained on in each phase."""
        pairs = zip(self.epochs, self.sequences, strict=True)
        return [max(1, round(epochs * sequences)) for epochs, sequences in pairs]

    @property
    def total_steps(self) -> int:
        return math.ceil(sum(self.taken) / self.per_step)

    def first_step(self, phase: int) -> int:
        """From 1: the step with the first sequence of a phase (from 0)."""
        return sum(self.taken[:phase]) // self.per_step + 1

    def phase_at(self, step: int) -> int:
        """The last phase (from 0) that a step (from 1) has sequences of."""
        last = min(step * self.per_step, sum(self.taken))
        return next(phase for phase, behind in enumerate(accumulate(self.taken)) if last <= behind)

    def epochs_at(self, steps: int) -> float:
        """Epochs done after so many steps, those of all phases added up."""
        left = min(steps * self.per_step, sum(self.taken))
        done = 0.0
        for epochs, taken in zip(self.epochs, self.taken, strict=True):
            done += epochs * min(left, taken) / taken
            left -= min(left, taken)
        return done


def total_steps(num_sequences: int, hyper: Hyperparameters) -> int:
    """Optimizer steps as the Trainer counts them: an epoch's last step takes whatever batches are left."""
    if hyper.max_steps is not None:
        return hyper.max_steps
    return math.ceil(hyper.num_epochs * steps_per_epoch(num_sequences, hyper))


def steps_per_epoch(num_sequences: int, hyper: Hyperparameters) -> int:
    """Optimizer steps of one pass over `num_sequences`; at least 1."""
    batches = math.ceil(num_sequences / hyper.per_device_train_batch_size)
    return max(math.ceil(batches / hyper.gradient_accumulation_steps), 1)
