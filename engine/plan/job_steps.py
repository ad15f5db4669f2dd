"""Counts the optimizer steps of a job and its passes over the data, from its prepared rows."""

from engine.config.job import JobConfig
from engine.config.steps import count_steps, steps_per_epoch
from engine.data.prepare import Prepared
from engine.plan.batching import TrainingRows


def job_steps(config: JobConfig, prepared: Prepared, *, packing: bool | None = None) -> int:
    """Returns the optimizer steps of the whole job, all phases included; `packing` overrides the job's setting."""
    packed = bool(config.hyperparameters.packing) if packing is None else packing
    return count_steps(config, [phase.num_sequences(packing=packed) for phase in prepared.phases])


def training_rows(prepared: Prepared) -> TrainingRows:
    """Returns the rows that batches are made of."""
    return TrainingRows(
        prepared.train.lengths,
        [phase.num_sequences(packing=False) for phase in prepared.phases],
        [phase.num_sequences(packing=True) for phase in prepared.phases],
    )


def passes(config: JobConfig, prepared: Prepared, steps: int) -> float:
    """Returns how many times the tokens of training_data are trained on, averaged over all phases."""
    if config.phases:
        pairs = zip(config.phases, prepared.phases, strict=True)
        tokens = sum(phase.num_epochs * counted.train.num_tokens for phase, counted in pairs)
        return tokens / max(prepared.train.num_tokens, 1)
    sequences = prepared.phases[0].num_sequences(packing=bool(config.hyperparameters.packing))
    return steps / steps_per_epoch(sequences, config)
