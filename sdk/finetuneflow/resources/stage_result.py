"""What a finished stage found."""

from __future__ import annotations

from dataclasses import dataclass

from finetuneflow.resources.convert import Resource
from finetuneflow.resources.estimate import ResourceEstimate
from finetuneflow.resources.hardware import Hardware


@dataclass(frozen=True, kw_only=True)
class BaseModelIdentity(Resource):
    """Which weights were trained on."""

    id: str
    revision: str
    weights_sha256: str
    num_parameters: int
    context_length: int
    architecture: str


@dataclass(frozen=True, kw_only=True)
class LanguageCount(Resource):
    """How often a role speaks a language; empty where it can't be told."""

    role: str
    language: str
    num_texts: int


@dataclass(frozen=True, kw_only=True)
class DataStatistics(Resource):
    """Counts over tokenised rows."""

    num_examples: int
    num_tokens: int
    num_trained_tokens: int
    num_truncated: int
    num_duplicates: int
    max_tokens: int
    mean_tokens: float
    format: str
    num_dropped: int
    num_left_out: int
    percentiles: dict[int, int]
    histogram: dict[int, int]
    roles: dict[str, int]
    scripts: dict[str, int]
    num_too_long: int
    languages: tuple[LanguageCount, ...]


@dataclass(frozen=True, kw_only=True)
class PhaseStatistics(Resource):
    """One phase of a curriculum. `first_step` counts from 1."""

    display_name: str
    num_epochs: float
    first_step: int
    training_data: DataStatistics
    num_packed_sequences: int


@dataclass(frozen=True, kw_only=True)
class HubDataset(Resource):
    """A file of rows on the hub. `pinned` is what the spec `asked` for, with commit and path."""

    asked: str
    pinned: str
    revision: str
    filename: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class PreflightResult(Resource):
    """What preflight found."""

    base_model: BaseModelIdentity
    training_data: DataStatistics
    evaluation_data: DataStatistics | None
    total_steps: int
    hardware: Hardware
    warnings: tuple[str, ...]
    estimate: ResourceEstimate | None
    shards_content_key: str
    shards_reused: bool
    phases: tuple[PhaseStatistics, ...]
    num_packed_sequences: int
    packing_efficiency: float
    hub_datasets: tuple[HubDataset, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingResult(Resource):
    """How training ended. Losses in nats per trained token."""

    total_steps: int
    train_loss: float
    final_train_loss: float
    best_eval_loss: float | None
    best_step: int
    final_eval_loss: float | None
    train_runtime_seconds: float
    train_samples_per_second: float
    train_tokens_per_second: float
    early_stopped: bool
    num_trainable_parameters: int
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class InferenceSample(Resource):
    """One question answered by both models."""

    instruction: str
    input: str
    expected_output: str
    model_output: str
    output_length: int
    base_output: str


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(Resource):
    """Base and tuned model on the same held-out rows, in fp32. Losses in nats per trained token."""

    base_loss: float | None
    tuned_loss: float | None
    base_perplexity: float | None
    tuned_perplexity: float | None
    num_examples: int
    num_trained_tokens: int
    samples: tuple[InferenceSample, ...]


@dataclass(frozen=True, kw_only=True)
class ExportResult(Resource):
    """What the package is."""

    package_path: str
    package_sha256: str
    package_size_bytes: int
