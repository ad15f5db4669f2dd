"""Counts the optimizer steps and evaluations of a job without phases; `curriculum` counts those of one with phases."""

import math

from engine.config.job import Hyperparameters, chosen


def total_steps(num_sequences: int, hyper: Hyperparameters) -> int:
    """Returns the optimizer steps of a job without phases, as the Trainer counts them: the last step of an epoch takes
    the batches that are left."""
    if hyper.max_steps is not None:
        return hyper.max_steps
    return math.ceil(hyper.num_epochs * steps_per_epoch(num_sequences, hyper))


def steps_per_epoch(num_sequences: int, hyper: Hyperparameters) -> int:
    """Returns the optimizer steps of one pass over the sequences; at least 1."""
    batches = math.ceil(num_sequences / hyper.micro_batch)
    return max(math.ceil(batches / hyper.accumulation), 1)


def num_evaluations(steps: int, hyper: Hyperparameters) -> int:
    """Returns the evaluations during a training: one every eval_steps, and one of the best weights at the end."""
    return steps // chosen(hyper.eval_steps) + 1
