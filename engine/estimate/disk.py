"""How much disk a training takes: its checkpoints above all, which are many times an adapter."""

import math
from dataclasses import dataclass
from typing import Final

from engine.config.job import JobConfig
from engine.estimate.architecture import Architecture
from engine.estimate.memory import Estimator, Setup
from engine.estimate.recommend import RESERVE, Verdict

_TIGHT: Final = 0.8
"""Of what is free: beyond it a log file or somebody else's download is enough to end the job."""
_STATE_BYTES: Final = 64 * 1024
"""Schedule, random state, configuration and history of a checkpoint."""
_ON_THEIR_WAY: Final = 2
"""One that is being written and one that is being stored. They lie on the node only until the store has them."""
_ALWAYS_KEPT: Final = 2
"""The gateway keeps the newest two, and the best one besides, whatever save_total_limit says."""
_SHARD_BYTES: Final = 8
"""Bytes of a token in the shards: its id and its label."""


@dataclass(frozen=True)
class Disk:
    """What a training writes, in bytes."""

    checkpoint_bytes: int
    num_checkpoints: int
    """At once, at most: where the store is elsewhere those on their way to it, else those that it keeps as well."""
    needed_bytes: int
    free_bytes: int
    holds_artifacts: bool
    """Whether the artifact store lies on the same disk."""
    download_bytes: int
    """Of the base model, where it is not on the machine yet."""

    @property
    def verdict(self) -> Verdict:
        if self.needed_bytes > self.free_bytes * (1 - RESERVE):
            return "impossible"
        return "tight" if self.needed_bytes > self.free_bytes * _TIGHT else "comfortable"


def checkpoint_bytes(architecture: Architecture, setup: Setup, tokenizer_bytes: int = 0) -> int:
    """Files of one checkpoint: what is trained, in float32, the state of the optimizer, and the tokenizer."""
    estimator = Estimator(architecture, setup)
    return 4 * estimator.num_trained_parameters + estimator.optimizer + tokenizer_bytes + _STATE_BYTES


def num_saved(config: JobConfig, total_steps: int) -> int:
    """Checkpoints that a job of so many steps writes at most: at save_steps, at every evaluation, and at the end."""
    every = [config.hyperparameters.save_steps]
    if config.evaluates_while_training:
        every.append(config.hyperparameters.eval_steps)
    at_both = total_steps // math.lcm(*every) if len(every) == 2 else 0
    at_end = all(total_steps % steps for steps in every)
    return sum(total_steps // steps for steps in every) - at_both + at_end


def estimate_disk(
    architecture: Architecture,
    setup: Setup,
    config: JobConfig,
    *,
    total_steps: int,
    num_tokens: int,
    free_bytes: int,
    holds_artifacts: bool,
    tokenizer_bytes: int = 0,
    download_bytes: int = 0,
) -> Disk:
    """Of a job whose data has `num_tokens` in one pass, held-out rows included."""
    one = checkpoint_bytes(architecture, setup, tokenizer_bytes)
    saved = num_saved(config, total_steps)
    kept = max(config.hyperparameters.save_total_limit, _ALWAYS_KEPT + config.evaluates_while_training)
    # One more than is kept: the newest is stored before an older one is deleted.
    held = min(saved, kept + 1) if holds_artifacts else 0
    on_their_way = min(saved, _ON_THEIR_WAY)
    shards = _SHARD_BYTES * num_tokens * (2 if holds_artifacts else 1)
    # The package and the zip of it.
    package = 2 * 4 * Estimator(architecture, setup).num_trained_parameters
    needed = (held + on_their_way) * one + shards + package + download_bytes
    return Disk(one, held + on_their_way, math.ceil(needed), free_bytes, holds_artifacts, download_bytes)
