"""Estimates the disk space of a training, most of which its checkpoints take."""

import math
from dataclasses import dataclass
from typing import Final

from engine.config.job import JobConfig, chosen
from engine.estimate.architecture import Architecture
from engine.estimate.memory import Estimator, Setup
from engine.estimate.recommend import RESERVE, Verdict

_TIGHT: Final = 0.8
"""Share of the free space above which the verdict is tight: a log file or another download could then fill the disk."""
_STATE_BYTES: Final = 64 * 1024
"""Size of a checkpoint's schedule, random state, configuration and history."""
_UPLOADING: Final = 2
"""Checkpoints on the node at once: one that is being written, and one that is being uploaded to the store."""
_ALWAYS_KEPT: Final = 2
"""Checkpoints that the gateway always keeps, besides the best one, whatever save_total_limit is."""
_PACKAGES: Final = 3
"""Copies of the package on the node at once: its files, its zip, and the zip unpacked again to verify it."""
_STORED_PACKAGES: Final = 4
"""The same where the store is on the same disk: its files and its zip, and both in the store."""
_SHARD_BYTES: Final = 8
"""Bytes of a token in the shards: its id and its label."""

GGUF_BITS: Final = {
    "f32": 32.0,
    "f16": 16.0,
    "bf16": 16.0,
    "q8_0": 8.5,
    "q2_k": 4.5,
    "q3_k_s": 4.5,
    "q3_k_m": 5.0,
    "q3_k_l": 5.5,
    "q4_0": 5.0,
    "q4_k_s": 5.5,
    "q4_k_m": 6.0,
    "q5_0": 6.0,
    "q5_k_s": 6.5,
    "q5_k_m": 7.0,
    "q6_k": 8.5,
}
"""Bits per weight of the types of GGUF files, at most: in small models, of which embeddings are a large part, or where
rows are no multiple of 256 numbers."""


@dataclass(frozen=True)
class Disk:
    """The disk space of a training, in bytes."""

    checkpoint_bytes: int
    num_checkpoints: int
    """Maximum number on the disk at once: those being uploaded and, if the store is on this disk, those it keeps."""
    needed_bytes: int
    free_bytes: int
    holds_artifacts: bool
    """True if the artifact store is on the same disk."""
    download_bytes: int
    """Size of the base model if it still has to be downloaded; otherwise 0."""
    package_bytes: int
    """Size of the weights in the exported package."""
    corpus_bytes: int = 0
    """Size of the files of a streamed corpus that have to be on the disk at once."""

    @property
    def verdict(self) -> Verdict:
        if self.needed_bytes > self.free_bytes * (1 - RESERVE):
            return "impossible"
        return "tight" if self.needed_bytes > self.free_bytes * _TIGHT else "comfortable"


def checkpoint_bytes(architecture: Architecture, setup: Setup, tokenizer_bytes: int = 0) -> int:
    """Returns the bytes of one checkpoint: trained weights in float32, optimizer state and tokenizer."""
    estimator = Estimator(architecture, setup)
    return estimator.saved_bytes + estimator.optimizer + tokenizer_bytes + _STATE_BYTES


def num_saved(config: JobConfig, total_steps: int) -> int:
    """Returns the maximum number of checkpoints that a job saves: at save_steps, at each evaluation, and at its end."""
    every = [chosen(config.hyperparameters.save_steps)]
    if config.evaluates_while_training:
        every.append(chosen(config.hyperparameters.eval_steps))
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
    merged_bytes: int = 0,
    conversion_bytes: int = 0,
    corpus_bytes: int = 0,
) -> Disk:
    """Estimates the disk space of a job whose token shards have `num_tokens` tokens, held-out rows included.

    `merged_bytes` is the size of the weights of the merged form and of the GGUF files, if the job exports them,
    `conversion_bytes` that of the weights that GGUF files are made of, `corpus_bytes` that of the files of a streamed
    corpus that one process reads at once."""
    one = checkpoint_bytes(architecture, setup, tokenizer_bytes)
    saved = num_saved(config, total_steps)
    kept = max(config.hyperparameters.save_total_limit, _ALWAYS_KEPT + config.evaluates_while_training)
    # One more than is kept: a new checkpoint is stored before an old one is deleted.
    held = min(saved, kept + 1) if holds_artifacts else 0
    uploading = min(saved, _UPLOADING)
    shards = _SHARD_BYTES * num_tokens * (2 if holds_artifacts else 1)
    package = merged_bytes + (Estimator(architecture, setup).saved_bytes if "adapter" in config.export.formats else 0)
    copies = _STORED_PACKAGES if holds_artifacts else _PACKAGES
    # Some of several processes may be in the next file already.
    corpus = corpus_bytes * min(config.world_size, 2)
    needed = (held + uploading) * one + shards + copies * package + download_bytes + conversion_bytes + corpus
    return Disk(one, held + uploading, math.ceil(needed), free_bytes, holds_artifacts, download_bytes, package, corpus)
