"""Counts the optimizer steps of a job and its passes over the data, from its prepared rows."""

from collections.abc import Sequence

from engine.config.curriculum import Curriculum
from engine.config.job import JobConfig
from engine.config.steps import steps_per_epoch, total_steps
from engine.data.prepare import Prepared


def job_steps(config: JobConfig, prepared: Prepared, *, packing: bool | None = None) -> int:
    """Returns the optimizer steps of the whole job, all phases included; `packing` overrides the job's setting."""
    packed = bool(config.hyperparameters.packing) if packing is None else packing
    return count_steps(config, [phase.num_sequences(packing=packed) for phase in prepared.phases])


def count_steps(config: JobConfig, sequences: Sequence[int]) -> int:
    """Returns the optimizer steps of the whole job from the sequences of each phase, or of the only one."""
    if config.phases:
        return Curriculum.of(config, sequences).total_steps
    return total_steps(sequences[0], config.hyperparameters)


def passes(config: JobConfig, prepared: Prepared, steps: int) -> float:
    """Returns how many times the tokens of training_data are trained on, averaged over all phases."""
    if config.phases:
        pairs = zip(config.phases, prepared.phases, strict=True)
        tokens = sum(phase.num_epochs * counted.train.num_tokens for phase, counted in pairs)
        return tokens / max(prepared.train.num_tokens, 1)
    hyper = config.hyperparameters
    return steps / steps_per_epoch(prepared.phases[0].num_sequences(packing=bool(hyper.packing)), hyper)
