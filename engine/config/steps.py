"""Counts the optimizer steps and evaluations of a job."""

import math
from collections.abc import Sequence

from engine.config.curriculum import Curriculum
from engine.config.job import Hyperparameters, JobConfig, chosen


def count_steps(config: JobConfig, sequences: Sequence[int]) -> int:
    """Returns the optimizer steps of a job from the sequences in one epoch of each phase, or of the only one."""
    if config.phases:
        return Curriculum.of(config, sequences).total_steps
    return total_steps(sequences[0], config)


def total_steps(num_sequences: int, config: JobConfig) -> int:
    """Returns the optimizer steps of a job without phases, as the Trainer counts them: the last step of an epoch takes
    the batches that are left."""
    hyper = config.hyperparameters
    if hyper.max_steps is not None:
        return hyper.max_steps
    return math.ceil(hyper.num_epochs * steps_per_epoch(num_sequences, config))


def steps_per_epoch(num_sequences: int, config: JobConfig) -> int:
    """Returns the optimizer steps of one pass over the sequences; at least 1."""
    batches = math.ceil(num_sequences / config.hyperparameters.micro_batch)
    return max(math.ceil(batches / config.micro_batches_per_step), 1)


def num_evaluations(steps: int, hyper: Hyperparameters) -> int:
    """Returns the evaluations during a training: one every eval_steps, and one at the last step."""
    return math.ceil(steps / chosen(hyper.eval_steps))
