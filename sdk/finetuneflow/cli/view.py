"""The state of a followed job, accumulated from its events."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from finetuneflow.cli.lines import restored_line
from finetuneflow.resources.event import Eval, Event, Log, Phase, StateChanged
from finetuneflow.resources.job import JobState, Stage

STAGES = (Stage.PREFLIGHT, Stage.TRAINING, Stage.EVALUATION, Stage.EXPORT)


@dataclass
class JobView:
    """Accumulates the events of a job, in order, into the values that a display shows."""

    job_id: str
    title: str = ""
    state: str = JobState.VALIDATING
    stage: Stage = Stage.PREFLIGHT
    attempt: int = 1
    phase: Phase | None = None
    log: Log | None = None
    eval: Eval | None = None
    best_eval: Eval | None = None
    done: set[Stage] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    losses: list[tuple[float, float]] = field(default_factory=list)
    eval_losses: list[tuple[float, float]] = field(default_factory=list)
    failure: Event | None = None
    disconnected: bool = False
    clock: Callable[[], float] = time.monotonic
    _log_seen_at: float = 0.0

    def feed(self, event: Event) -> None:
        """Adds an event."""
        match event.payload:
            case StateChanged() as change:
                self._change(change)
            case Phase() as phase:
                self.stage, self.attempt, self.phase = event.stage, event.attempt, phase
            case Log() as log:
                self.log, self._log_seen_at = log, self.clock()
                _put(self.losses, log.step, log.loss)
            case Eval() as evaluation:
                self.eval = evaluation
                if evaluation.best:
                    self.best_eval = evaluation
                _put(self.eval_losses, evaluation.step, evaluation.eval_loss)
            case _:
                self._other(event)

    def _change(self, change: StateChanged) -> None:
        self.state = change.state
        if change.stage != self.stage:
            self.stage, self.phase, self.attempt = change.stage, None, 1
        if change.state == JobState.SUCCEEDED:
            self.done = set(STAGES)

    def _other(self, event: Event) -> None:
        if event.kind == "stage_completed":
            self.done.add(event.stage)
        elif event.kind == "stage_failed":
            self.failure = event
            failure = event.stage_failed
            self.notes.append(f"attempt {event.attempt} failed: {failure.reason}: {failure.message}")
        elif event.kind == "warning":
            self.notes.append(event.warning.message)
        elif event.kind == "restored":
            self.notes.append(restored_line(event, self.failure))

    @property
    def stage_index(self) -> int:
        """Position of the current stage, from 1."""
        return STAGES.index(self.stage) + 1 if self.stage in STAGES else 1

    @property
    def eta_seconds(self) -> float | None:
        """Estimated seconds until training ends, counted down between two log events. None if unknown."""
        if self.log is None or not self.log.eta_seconds:
            return None
        return max(0.0, self.log.eta_seconds - (self.clock() - self._log_seen_at))


def _put(curve: list[tuple[float, float]], step: int, value: float) -> None:
    """Appends a point. An attempt that resumes from a checkpoint repeats steps; its points replace the earlier ones."""
    while curve and curve[-1][0] >= step:
        curve.pop()
    curve.append((step, value))
