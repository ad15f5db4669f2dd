"""Jobs and what belongs to them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetuneflow.resources.convert import OpenEnum, Resource
from finetuneflow.resources.stage_result import PreflightResult, TrainingResult


class JobState(OpenEnum):
    """Where a job is in its life."""

    VALIDATING = "VALIDATING"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        """True when the job will not change any more."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Stage(OpenEnum):
    """The four stages, in their order."""

    PREFLIGHT = "PREFLIGHT"
    TRAINING = "TRAINING"
    EVALUATION = "EVALUATION"
    EXPORT = "EXPORT"


class Fault(OpenEnum):
    """Who can mend a failure: the caller, or the operator."""

    USER_ERROR = "USER_ERROR"
    SYSTEM_ERROR = "SYSTEM_ERROR"


@dataclass(frozen=True, kw_only=True)
class Resolution(Resource):
    """Why preflight gave a field its value."""

    field: str
    value: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Progress(Resource):
    """How far the training is. Losses in nats per trained token."""

    step: int
    total_steps: int
    epoch: float
    loss: float | None
    eval_loss: float | None
    best_eval_loss: float | None
    best_step: int
    tokens_per_second: float | None
    eta_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class AttemptSummary(Resource):
    """One try at one stage. `counted` ones count against max_attempts; `reason` is one of `finetuneflow.Reason`."""

    stage: Stage
    attempt: int
    state: str
    node_id: str
    outcome: str
    reason: str
    message: str
    counted: bool
    create_time: datetime | None
    claim_time: datetime | None
    end_time: datetime | None

    @property
    def seconds(self) -> float | None:
        """How long a worker had it; None before its end, or when no worker ever had it."""
        if self.claim_time is None or self.end_time is None:
            return None
        return (self.end_time - self.claim_time).total_seconds()


@dataclass(frozen=True, kw_only=True)
class Job(Resource):
    """One fine-tuning job, as it stood when it was read.

    `spec` is what was asked for and `resolved_spec` what the job runs with, both in the form that `jobs.create`
    takes. `tuned_model`, `evaluation_id` and `export_id` are empty until they exist. `attempts` is the history,
    oldest first; `jobs.get` fills it, the other methods leave it empty. `reason` is one of `finetuneflow.Reason`.
    """

    id: str
    state: JobState
    stage: Stage
    reason: str
    message: str
    fault: Fault | None
    advice: str
    attempt: int
    failed_attempts: int
    progress: Progress | None
    last_sequence: int
    tuned_model: str
    evaluation_id: str
    export_id: str
    preflight: PreflightResult | None
    training: TrainingResult | None
    create_time: datetime | None
    update_time: datetime | None
    end_time: datetime | None
    spec: dict[str, Any]
    resolved_spec: dict[str, Any]
    resolutions: tuple[Resolution, ...]
    attempts: tuple[AttemptSummary, ...]

    @property
    def ended(self) -> bool:
        """True when the job will not change any more."""
        return self.state.terminal

    @property
    def display_name(self) -> str:
        return str(self.resolved_spec.get("display_name") or self.spec.get("display_name") or "")


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Resource):
    """A saved training state that can be resumed from."""

    job_id: str
    step: int
    epoch: float
    attempt: int
    path: str
    manifest_sha256: str
    size_bytes: int
    eval_loss: float | None
    best: bool
    create_time: datetime | None


@dataclass(frozen=True, kw_only=True)
class MetricPoint(Resource):
    """One point of a curve."""

    step: int
    value: float
    epoch: float
    sequence: int


@dataclass(frozen=True, kw_only=True)
class MetricSeries(Resource):
    """One curve, by step."""

    name: str
    points: tuple[MetricPoint, ...]

    @property
    def steps(self) -> list[int]:
        return [point.step for point in self.points]

    @property
    def values(self) -> list[float]:
        return [point.value for point in self.points]
