"""The arithmetic of a curriculum: the length of each phase, and the phase of each step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from engine.config.job import JobConfig


@dataclass(frozen=True)
class Curriculum:
    """The phases of a job as one continuous order of sequences.

    Steps are always full: one that starts with the last sequences of a phase continues with the first of the next.
    """

    names: list[str]
    """Display name of each phase."""
    epochs: list[float]
    """Epochs of each phase."""
    sequences: list[int]
    """Sequences in one epoch of each phase: rows, or packs of rows."""
    per_step: int
    """Sequences per optimizer step."""

    @classmethod
    def of(cls, config: JobConfig, sequences: Sequence[int]) -> "Curriculum":
        """Builds the curriculum of a job; `sequences` has the sequences in one epoch of each phase."""
        return cls(
            [phase.display_name for phase in config.phases],
            [phase.num_epochs for phase in config.phases],
            list(sequences),
            config.rows_per_step,
        )

    @property
    def taken(self) -> list[int]:
        """Number of sequences trained on in each phase, all epochs together."""
        pairs = zip(self.epochs, self.sequences, strict=True)
        return [max(1, round(epochs * sequences)) for epochs, sequences in pairs]

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps of all phases together."""
        return math.ceil(sum(self.taken) / self.per_step)

    def first_step(self, phase: int) -> int:
        """Returns the step (from 1) that contains the first sequence of a phase (from 0)."""
        return sum(self.taken[:phase]) // self.per_step + 1

    def phase_at(self, step: int) -> int:
        """Returns the last phase (from 0) with sequences in a step (from 1)."""
        last = min(step * self.per_step, sum(self.taken))
        return next(phase for phase, behind in enumerate(accumulate(self.taken)) if last <= behind)

    def epochs_at(self, steps: int) -> float:
        """Returns the epochs completed after `steps` steps, added up over all phases."""
        left = min(steps * self.per_step, sum(self.taken))
        done = 0.0
        for epochs, taken in zip(self.epochs, self.taken, strict=True):
            done += epochs * min(left, taken) / taken
            left -= min(left, taken)
        return done
