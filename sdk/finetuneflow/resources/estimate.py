"""Estimates of memory, time and cost, and recommendations of a training method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetuneflow.resources.convert import OpenEnum, Resource


class FitVerdict(OpenEnum):
    """Fit of a job to the hardware."""

    COMFORTABLE = "COMFORTABLE"
    """The job fits with room to spare."""
    TIGHT = "TIGHT"
    """The job fits only with the listed changes."""
    IMPOSSIBLE = "IMPOSSIBLE"
    """The job does not fit this hardware."""


class TrainingMethod(OpenEnum):
    """Method by which the weights are trained."""

    LORA = "LORA"
    """Low-rank adapters on frozen full-precision weights."""
    QLORA = "QLORA"
    """Low-rank adapters on frozen 4-bit or 8-bit weights."""
    FULL = "FULL"
    """All weights are trained."""


@dataclass(frozen=True, kw_only=True)
class MemoryComponent(Resource):
    """One component of the memory."""

    name: str
    """Name of the component, such as `weights`."""
    size_bytes: int
    """Size in bytes."""
    description: str
    """Short description of the component."""
    uncertainty: float
    """By how much the component may be larger, as a fraction of size_bytes."""


@dataclass(frozen=True, kw_only=True)
class DiskEstimate(Resource):
    """Disk space that training needs on its node."""

    checkpoint_bytes: int
    """Size of one checkpoint in bytes: adapter or weights, optimizer state, tokenizer."""
    num_checkpoints: int
    """Maximum number of checkpoints on disk at the same time, including those being uploaded."""
    needed_bytes: int
    """Peak disk usage in bytes: checkpoints, token shards, the package, the files of a streamed corpus that are read at
    once, and the base model's weights if they are not on the machine yet."""
    free_bytes: int
    """Free disk space in bytes; 5 % of it is kept in reserve."""
    holds_artifacts: bool
    """True if the artifact store is on the same disk, so that stored artifacts count as well."""
    verdict: FitVerdict | None
    """Fit of the job to the disk. IMPOSSIBLE: the job is refused with DISK_TOO_SMALL. TIGHT: more than 80 % of the
    free space is needed."""
    download_bytes: int
    """Bytes of the base model's weights that have yet to be downloaded or unpacked."""
    corpus_bytes: int
    """Bytes of the files of a streamed corpus that have to be on the disk at once: the largest of each `weight`, twice
    with several processes, because some of them may be in the next file already. 0 for other jobs."""


@dataclass(frozen=True, kw_only=True)
class Adjustment(Resource):
    """A hyperparameter that has to change for a job to fit."""

    field: str
    """Path of the field in the spec, such as hyperparameters.max_length."""
    before: str
    """Current value, as text."""
    after: str
    """Required value, as text."""


@dataclass(frozen=True, kw_only=True)
class ResourceEstimate(Resource):
    """Memory, time, cost and disk that a job is expected to need. Unknown values are None."""

    memory: tuple[MemoryComponent, ...]
    """Memory by component (weights, adapters, gradients, optimizer, gathered, buffers, activations, logits, workspace,
    process, fragmentation) at the moment of the highest total. Components that are zero at that moment are absent. All
    memory but host_memory_* is that of each process."""
    memory_total_bytes: int
    """Sum of the components, in bytes."""
    memory_upper_bytes: int
    """Upper bound of the total in bytes, with the certainty stated in docs/estimates.md. The verdict uses it."""
    memory_free_bytes: int
    """Free memory for each process in bytes: that of the GPU with the least of those that are used, or an equal share
    of main memory. 5 % of it is kept in reserve."""
    moment: str
    """When the memory peaks: `loss` (all activations are kept and the head computes logits), `backward` (inside a
    block), `step` (the optimizer updates the weights), or `loading` (the weights are read)."""
    verdict: FitVerdict | None
    """Fit of the upper bound to the free memory."""
    method: TrainingMethod | None
    """Training method that the estimate is for."""
    hardware: str
    """The GPU, or the processor and its cores, that the verdict applies to; speed and price are those of all
    processes."""
    num_parameters: int
    """Number of parameters of the base model, computed from its architecture."""
    num_trained_parameters: int
    """Number of parameters that are trained."""
    num_tokens: int | None
    """Tokens trained on, over all epochs. None if the request does not give the amount of data."""
    tokens_per_second: float | None
    """Assumed speed in trained tokens per second, without padding."""
    speed_basis: str
    """Source of the speed, in one sentence: earlier trainings on this hardware, or an assumption."""
    num_observations: int
    """Number of earlier trainings that the speed is derived from; 0 if it is assumed."""
    duration_seconds: float | None
    """Training time in seconds. None if the number of tokens is unknown."""
    duration_low_seconds: float | None
    """Lower end of the range of duration_seconds."""
    duration_high_seconds: float | None
    """Upper end of the range of duration_seconds."""
    price_per_hour: float | None
    """Price of one hour of the hardware, of all its GPUs that are used, in `currency`. None if the price table has
    none."""
    cost: float | None
    """Price of the training time, in `currency`. None if the price table has no price for the hardware."""
    cost_low: float | None
    """Lower end of the range of cost."""
    cost_high: float | None
    """Upper end of the range of cost."""
    currency: str
    """Currency of prices and costs, such as USD."""
    disk: DiskEstimate | None
    """Disk space that training needs. None if the data or the free disk space is unknown."""
    changes: tuple[Adjustment, ...]
    """For a TIGHT estimate, the changes with which the job fits; the memory above is without them. Empty within a
    Recommendation, whose estimate includes its changes."""
    warnings: tuple[str, ...]
    """Requested settings that the estimate does not count, such as tokens beyond max_length. Empty within a
    Recommendation, which has warnings of its own."""
    world_size: int
    """Number of processes that train together."""
    parallelism: str
    """How they share the training: ddp, zero2, zero2_offload or fsdp. Empty for one process."""
    parallelism_reason: str
    """Reason for that, in a few clauses. Empty for one process."""
    host_memory_bytes: int
    """Main memory in bytes that all processes of the node together take for states that they keep off their GPUs; 0
    without offloading."""
    host_memory_upper_bytes: int
    """Upper bound of it in bytes; the verdict uses it."""
    host_memory_free_bytes: int
    """Free main memory of the node in bytes; 5 % of it is kept in reserve. 0: not compared, because it is unknown or
    nothing is offloaded."""


@dataclass(frozen=True, kw_only=True)
class SeedRecommendation(Resource):
    """Answer of a simple rule based on GPU size and parameter count. For comparison only; nothing depends on it."""

    method: TrainingMethod | None
    """Method; None for none."""
    reason: str
    """Reason for the method."""
    can_train: bool
    """True if the rule considers the model trainable."""
    estimated_vram_usage_gb: float | None
    """Estimated GPU memory in GB (10^9 bytes). None without a method."""
    suggestions: tuple[str, ...]
    """Suggested settings."""
    warnings: tuple[str, ...]
    """Warnings of the rule."""
    alternative: str
    """Alternative hardware or model."""


@dataclass(frozen=True, kw_only=True)
class Recommendation(Resource):
    """The recommended way to train a model on given hardware."""

    method: TrainingMethod | None
    """Recommended method; None if the model cannot be trained on this hardware."""
    verdict: FitVerdict | None
    """Fit of the job to the memory, adjustments included."""
    reason: str
    """Reason for the method, in one sentence."""
    adjustments: dict[str, Any]
    """The smallest changes to the spec that make the job fit, in the form that `jobs.create` takes."""
    changes: tuple[Adjustment, ...]
    """The adjustments one by one, with the value before each."""
    warnings: tuple[str, ...]
    """Points to consider, one sentence each."""
    alternatives: tuple[str, ...]
    """Other ways to train the model, one sentence each."""
    estimate: ResourceEstimate
    """Estimate of the recommended job, adjustments included."""
    seed: SeedRecommendation
    """Answer of a simple rule based on GPU size and parameter count, for comparison only."""
    base_model: str
    """Name under which the model was found: that of the request, or of the known architecture it stands for."""


@dataclass(frozen=True, kw_only=True)
class DecisionCell(Resource):
    """One model size on one band of GPU memory."""

    band: str
    """Band of GPU memory in GiB, such as 8-12."""
    memory_free_bytes: int
    """Free memory in bytes that the cell is computed with: the lower end of the band."""
    size: str
    """Model size, such as 7-8B."""
    base_model: str
    """Architecture that represents the model size."""
    method: TrainingMethod | None
    """Recommended method; None if the model cannot be trained."""
    verdict: FitVerdict | None
    """Fit of the model to the memory."""
    memory_upper_bytes: int
    """Upper bound of the required memory in bytes; for IMPOSSIBLE, that of the smallest configuration."""
    changes: tuple[str, ...]
    """Changes with which the model fits, as `field = value`."""
    seed_method: TrainingMethod | None
    """Method that the simple rule gives in this cell. For comparison only."""
    seed_verdict: FitVerdict | None
    """Verdict that the simple rule gives in this cell. For comparison only."""
    difference: str
    """Why the two answers differ, in one sentence. Empty if they agree."""
