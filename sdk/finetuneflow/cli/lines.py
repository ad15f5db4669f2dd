"""Events as lines, for pipes and log files."""

from __future__ import annotations

from finetuneflow.cli.session import duration, shortened, size, speed
from finetuneflow.resources.event import (
    CheckpointSaved,
    Complete,
    Eval,
    Event,
    Log,
    Phase,
    Restored,
    StageCompleted,
    StageFailed,
    StageReleased,
    StateChanged,
    Warning,
)
from finetuneflow.resources.job import JobState
from finetuneflow.resources.stage_result import InferenceSample


def log_figures(log: Log) -> str:
    """Formats training metrics."""
    mfu = f"  MFU {log.mfu:.1%}" if log.mfu is not None else ""
    return (
        f"loss {log.loss:.4f}  lr {log.learning_rate:.2e}  grad norm {log.grad_norm:.3g}  "
        f"{speed(log.tokens_per_second)}{mfu}"
    )


def phase_name(phase: Phase) -> str:
    """Formats a phase with its position among the stage's phases; the download before the first phase has none."""
    place = f" ({phase.index} of {phase.count})" if phase.count else ""
    return f"{phase.name.replace('_', ' ')}{place}"


def curriculum_phase(phase: Phase) -> str:
    """Returns the place of the training in its curriculum, as in `curriculum phase 2 of 3, name`; empty without one."""
    place = phase.detail.partition(":")[0]
    return place if place.startswith("curriculum phase ") else ""


def restored_line(event: Event, failure: Event | None) -> str:
    """Formats a `restored` event. `failure` is the latest failed attempt before it, of any stage."""
    step = event.restored.checkpoint_step
    after = ""
    if failure is not None and (failure.stage, failure.attempt) == (event.stage, event.attempt - 1):
        after = f" after {failure.stage_failed.reason}"
    return f"attempt {event.attempt}{after}: resumes from step {step}"


class Lines:
    """Formats events as lines."""

    def __init__(self) -> None:
        self._last_phase: tuple[str, int, str, str] | None = None
        self._failure: Event | None = None

    def of(self, event: Event) -> str | None:
        """Returns the line of an event, or None if the event adds nothing to the lines before it."""
        text = self._text(event)
        return None if text is None else f"{event.stage.lower():<10}  {text}"

    def _text(self, event: Event) -> str | None:
        match event.payload:
            case StateChanged() as change:
                return _state(change, self._failure)
            case Phase() as phase:
                return self._phase(event, phase)
            case Log() as log:
                eta = f"  ETA {duration(log.eta_seconds)}" if log.eta_seconds else ""
                return f"step {log.step}/{log.total_steps}  {log_figures(log)}{eta}"
            case Eval() as evaluation:
                best = "  best so far" if evaluation.best else ""
                figures = f"eval loss {evaluation.eval_loss:.4f}  perplexity {evaluation.perplexity:.2f}"
                return f"step {evaluation.step}/{evaluation.total_steps}  {figures}{best}"
            case InferenceSample() as sample if sample.step:
                prompt, answer = shortened(sample.instruction, 60), shortened(sample.model_output)
                return f"step {sample.step}  {prompt} → {answer}"
            case CheckpointSaved() as checkpoint:
                return f"checkpoint of step {checkpoint.step}, {size(checkpoint.size_bytes)}"
            case Restored():
                return restored_line(event, self._failure)
            case Warning() as warning:
                return f"Warning: {warning.message}" + (f" ({warning.advice})" if warning.advice else "")
            case Complete() as complete:
                early = ", stopped early" if complete.early_stopped else ""
                # Earlier attempts trained some of the steps.
                here = " in this attempt" if event.attempt > 1 else ""
                seconds = duration(complete.train_runtime_seconds)
                return f"trained {complete.total_steps} steps, {seconds}{here}{early}"
            case StageCompleted():
                return "done"
            case StageReleased() as released:
                why = f": {released.reason.lower().replace('_', ' ')}" if released.reason else ""
                return f"attempt {event.attempt} released{why}"
            case StageFailed() as failure:
                self._failure = event
                return f"attempt {event.attempt} failed: {failure.reason}: {failure.message}"
            case _:
                return None

    def _phase(self, event: Event, phase: Phase) -> str | None:
        # The phases of a curriculum differ in the detail only. Other details change too often for a line each.
        key = (event.stage, event.attempt, phase.name, curriculum_phase(phase))
        if key == self._last_phase:
            return None
        self._last_phase = key
        detail = f": {phase.detail}" if phase.detail else ""
        return f"{phase_name(phase)}{detail}"


def _state(change: StateChanged, failure: Event | None) -> str:
    node = f" on {change.node_id}" if change.node_id else ""
    said = change.message or change.reason
    # An earlier line has printed the cause. A retry adds nothing to it, but the end of a job may.
    cause = "" if failure is None else failure.stage_failed.message
    told = bool(cause) and (cause == change.message or (cause in said and change.state != JobState.FAILED))
    why = f": {said}" if said and not told else ""
    return f"{change.state.lower()}{node}{why}"
