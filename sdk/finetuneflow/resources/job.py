"""Jobs, their attempts, checkpoints and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetuneflow.resources.convert import OpenEnum, Resource
from finetuneflow.resources.integration import Integration
from finetuneflow.resources.stage_result import GateDecision, PreflightResult, TrainingResult


class JobState(OpenEnum):
    """State of a job. SUCCEEDED, FAILED and CANCELLED are terminal."""

    VALIDATING = "VALIDATING"
    """Preflight waits for a probe or runs on one."""
    QUEUED = "QUEUED"
    """The current stage waits for a free worker."""
    RUNNING = "RUNNING"
    """A worker holds the current stage."""
    PAUSING = "PAUSING"
    """A pause was requested; the worker is writing a checkpoint."""
    PAUSED = "PAUSED"
    """Paused until ResumeFineTuningJob."""
    CANCELLING = "CANCELLING"
    """A cancellation was requested; the worker is stopping."""
    SUCCEEDED = "SUCCEEDED"
    """All stages succeeded; the package is available."""
    FAILED = "FAILED"
    """Ended by a failure; see fault, reason and advice."""
    CANCELLED = "CANCELLED"
    """Ended by CancelFineTuningJob; accepted checkpoints are kept."""

    @property
    def terminal(self) -> bool:
        """True if the job will not change any more."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Stage(OpenEnum):
    """The stages of a job, in order."""

    PREFLIGHT = "PREFLIGHT"
    """The probe checks data, settings, memory and disk."""
    TRAINING = "TRAINING"
    """The trainer trains the model."""
    EVALUATION = "EVALUATION"
    """The evaluator compares the tuned model with its base."""
    EXPORT = "EXPORT"
    """The exporter builds the package."""


class Fault(OpenEnum):
    """The party that can fix a failure."""

    USER_ERROR = "USER_ERROR"
    """The caller: data, model or configuration. Not retried."""
    SYSTEM_ERROR = "SYSTEM_ERROR"
    """The operator: service or machine. Retried until spec.max_attempts failures."""


class StartMode(OpenEnum):
    """Use of the adapter that a training starts from."""

    CONTINUE = "CONTINUE"
    """Its weights are trained further."""
    NEW = "NEW"
    """It stays as it is, and a new one is trained on top of it; both are saved as one."""


@dataclass(frozen=True, kw_only=True)
class AdapterStart(Resource):
    """An adapter that a training started from."""

    start_from: str
    """Name of the adapter: `ft:<job_id>@<step>`, or `ds_…` for an uploaded one."""
    start_mode: StartMode
    """Use of the adapter."""
    manifest_sha256: str
    """SHA-256 of the manifest of its checkpoint, which holds the SHA-256 of every file, or of the uploaded file; in
    hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class Resolution(Resource):
    """Why preflight chose a value."""

    field: str
    """Field path in the spec, such as `hyperparameters.precision`."""
    value: str
    """The value, in TOML notation."""
    reason: str
    """The reason in one sentence."""


@dataclass(frozen=True, kw_only=True)
class Progress(Resource):
    """Progress of the work, from the latest accepted log, eval and phase events."""

    step: int
    """Completed optimizer steps."""
    total_steps: int
    """Optimizer steps of the whole job; 0 before training starts."""
    epoch: float
    """Completed epochs, fractional."""
    loss: float | None
    """Latest training loss in nats per trained token."""
    eval_loss: float | None
    """Latest evaluation loss in nats per trained token."""
    best_eval_loss: float | None
    """Lowest evaluation loss so far, in nats per trained token."""
    best_step: int
    """Step of the lowest evaluation loss."""
    tokens_per_second: float | None
    """Trained tokens per second, without padding."""
    eta_seconds: float | None
    """Estimated seconds until training ends."""
    phase: str
    """Phase of the current attempt, such as loading_model. Empty before the first one."""
    phase_index: int
    """Position of the phase among the stage's phases, from 1."""
    phase_count: int
    """Number of phases of the stage."""
    phase_fraction: float | None
    """Completed fraction of the phase, in [0, 1]. None if unknown."""


@dataclass(frozen=True, kw_only=True)
class AttemptSummary(Resource):
    """One attempt at one stage."""

    stage: Stage
    """Stage of the attempt."""
    attempt: int
    """Number of the attempt, from 1 for each stage."""
    state: str
    """READY (waiting for a worker), CLAIMED (a worker holds it) or ENDED."""
    node_id: str
    """Id of the node that claimed the attempt. Empty before the claim."""
    outcome: str
    """Outcome: COMPLETED, FAILED, RELEASED (its worker released it on request), OUT_OF_MEMORY (training
    continued with a smaller micro-batch), or CANCELLED or PAUSED (before a worker claimed it). Empty before its end."""
    reason: str
    """Machine-readable cause of the outcome, such as KILLED or LEASE_EXPIRED."""
    message: str
    """The cause in one sentence."""
    counted: bool
    """True if the attempt counts against spec.max_attempts."""
    create_time: datetime | None
    """Time at which the attempt was created."""
    claim_time: datetime | None
    """Time at which a worker claimed the attempt. None before."""
    end_time: datetime | None
    """Time at which the attempt ended. None before."""

    @property
    def seconds(self) -> float | None:
        """Seconds from the claim to the end. None before the end, or if no worker claimed the attempt."""
        if self.claim_time is None or self.end_time is None:
            return None
        return (self.end_time - self.claim_time).total_seconds()


@dataclass(frozen=True, kw_only=True)
class Job(Resource):
    """A fine-tuning job in the state in which it was read."""

    id: str
    """`ftjob_` followed by 26 characters; ids sort by creation time."""
    state: JobState
    """Current state."""
    stage: Stage
    """Current stage, or the stage in which the job ended."""
    reason: str
    """The cause of the state: one of `finetuneflow.Reason`. For SUCCEEDED `COMPLETED` or `EARLY_STOPPED`; for FAILED
    the reason of the failure. Empty if the state needs no cause."""
    message: str
    """The cause in one sentence."""
    fault: Fault | None
    """For FAILED: who can fix the failure."""
    advice: str
    """For FAILED: how to fix the failure, such as the field to change."""
    attempt: int
    """Attempt of the current stage, from 1."""
    failed_attempts: int
    """Number of failures counted against spec.max_attempts so far."""
    progress: Progress | None
    """Progress of the training."""
    last_sequence: int
    """Sequence of the latest accepted event; 0 before the first one."""
    tuned_model: str
    """`ft:<job_id>` once the export is accepted: the name of the tuned model in other calls. Empty before."""
    gate_decision: GateDecision | None
    """Decision of the gate of the job's own evaluation about tuned_model. None before it, and without one."""
    shown_regression: str
    """What tuned_model has lost by the regression set, in one sentence, whatever the gate decided. Empty if nothing is
    shown."""
    evaluation_id: str
    """Id of the evaluation of stage 3 once it is accepted. Empty before."""
    export_id: str
    """Id of the export of stage 4 once it is accepted. Empty before."""
    preflight: PreflightResult | None
    """Result of preflight. None until preflight succeeds."""
    training: TrainingResult | None
    """Result of training. None until training succeeds."""
    create_time: datetime | None
    """Time at which the job was created."""
    update_time: datetime | None
    """Time of the last change."""
    end_time: datetime | None
    """Time at which the job reached a terminal state. None before."""
    spec: dict[str, Any]
    """The spec as the caller sent it, in the form that `jobs.create` takes."""
    resolved_spec: dict[str, Any]
    """The spec that the job runs with, with every field set, in the form that `jobs.create` takes. Empty until
    preflight has resolved it."""
    resolutions: tuple[Resolution, ...]
    """Reason of each value that preflight chose automatically."""
    attempts: tuple[AttemptSummary, ...]
    """All attempts, oldest first; at most the latest 100. Set by `jobs.get` only; empty otherwise."""
    waiting: str
    """Why the current stage waits, in one sentence, and how many attempts are before it. Empty if it does not wait. Set
    by `jobs.get` only."""
    integrations: tuple[Integration, ...]
    """Webhooks and trackers that follow the job, oldest first. Set by `jobs.get` only; empty otherwise."""
    lineage: tuple[AdapterStart, ...]
    """The adapters that the job's training builds upon: the one that it starts from, the one that that one started
    from, and so on. Empty if training starts from the base model."""

    @property
    def ended(self) -> bool:
        """True if the job will not change any more."""
        return self.state.terminal

    @property
    def display_name(self) -> str:
        """Display name; empty if the job has none."""
        return str(self.resolved_spec.get("display_name") or self.spec.get("display_name") or "")


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Resource):
    """An accepted training state from which a job can resume."""

    job_id: str
    """Id of the job that the checkpoint belongs to."""
    step: int
    """Completed optimizer steps."""
    epoch: float
    """Completed epochs, fractional."""
    attempt: int
    """Attempt that wrote the checkpoint, from 1."""
    path: str
    """Path of its folder in the artifact store, relative to the tenant's folder."""
    manifest_sha256: str
    """SHA-256 of its manifest, which holds the SHA-256 of every file; in hexadecimal."""
    size_bytes: int
    """Total size of its files in bytes."""
    eval_loss: float | None
    """Evaluation loss at this step in nats per trained token. None if not measured."""
    best: bool
    """True if its evaluation loss is the lowest so far."""
    create_time: datetime | None
    """Time at which the gateway accepted the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class MetricPoint(Resource):
    """One point of a series."""

    step: int
    """Completed optimizer steps."""
    value: float
    """Value of the metric, in its own unit."""
    epoch: float
    """Completed epochs, fractional."""
    sequence: int
    """Sequence of the event with this point."""


@dataclass(frozen=True, kw_only=True)
class MetricSeries(Resource):
    """A metric over time."""

    name: str
    """`loss`, `eval_loss`, `learning_rate`, `grad_norm`, `tokens_per_second` or a name from an event's extras."""
    points: tuple[MetricPoint, ...]
    """The points, ordered by sequence."""

    @property
    def steps(self) -> list[int]:
        """The step of each point."""
        return [point.step for point in self.points]

    @property
    def values(self) -> list[float]:
        """The value of each point."""
        return [point.value for point in self.points]
