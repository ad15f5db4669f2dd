"""What a training needs, and how a model is best trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetuneflow.resources.convert import OpenEnum, Resource


class FitVerdict(OpenEnum):
    """Whether a training fits the memory that is free."""

    COMFORTABLE = "COMFORTABLE"
    TIGHT = "TIGHT"
    """Only with the changes that are listed."""
    IMPOSSIBLE = "IMPOSSIBLE"


class TrainingMethod(OpenEnum):
    """What is trained."""

    LORA = "LORA"
    QLORA = "QLORA"
    FULL = "FULL"


@dataclass(frozen=True, kw_only=True)
class MemoryComponent(Resource):
    """One part of the memory."""

    name: str
    size_bytes: int
    description: str
    uncertainty: float


@dataclass(frozen=True, kw_only=True)
class DiskEstimate(Resource):
    """What a training writes on its node."""

    checkpoint_bytes: int
    num_checkpoints: int
    needed_bytes: int
    free_bytes: int
    holds_artifacts: bool
    verdict: FitVerdict | None
    download_bytes: int


@dataclass(frozen=True, kw_only=True)
class Adjustment(Resource):
    """A hyperparameter that has to change."""

    field: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class ResourceEstimate(Resource):
    """Memory, time, cost and disk of a training. What cannot be told is None."""

    memory: tuple[MemoryComponent, ...]
    memory_total_bytes: int
    memory_upper_bytes: int
    memory_free_bytes: int
    moment: str
    verdict: FitVerdict | None
    method: TrainingMethod | None
    hardware: str
    num_parameters: int
    num_trained_parameters: int
    num_tokens: int | None
    tokens_per_second: float | None
    speed_basis: str
    num_observations: int
    duration_seconds: float | None
    duration_low_seconds: float | None
    duration_high_seconds: float | None
    price_per_hour: float | None
    cost: float | None
    cost_low: float | None
    cost_high: float | None
    currency: str
    disk: DiskEstimate | None
    changes: tuple[Adjustment, ...]
    """With which a tight one fits."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SeedRecommendation(Resource):
    """The answer of a rule by GPU size and parameters alone, for comparison."""

    method: TrainingMethod | None
    reason: str
    can_train: bool
    estimated_vram_usage_gb: float | None
    suggestions: tuple[str, ...]
    warnings: tuple[str, ...]
    alternative: str


@dataclass(frozen=True, kw_only=True)
class Recommendation(Resource):
    """How a model is best trained on some hardware. `method` None: not at all."""

    method: TrainingMethod | None
    verdict: FitVerdict | None
    reason: str
    adjustments: dict[str, Any]
    """The changes, as `jobs.create` takes them."""
    changes: tuple[Adjustment, ...]
    warnings: tuple[str, ...]
    alternatives: tuple[str, ...]
    estimate: ResourceEstimate
    seed: SeedRecommendation
    base_model: str


@dataclass(frozen=True, kw_only=True)
class DecisionCell(Resource):
    """One model size on one band of GPU memory; bands are in GiB."""

    band: str
    memory_free_bytes: int
    size: str
    base_model: str
    method: TrainingMethod | None
    verdict: FitVerdict | None
    memory_upper_bytes: int
    changes: tuple[str, ...]
    seed_method: TrainingMethod | None
    seed_verdict: FitVerdict | None
    difference: str
