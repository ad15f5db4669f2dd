"""The life of work of any kind: opens and ends attempts, and carries out the verbs. Pure decisions, no I/O but rows."""

from dataclasses import dataclass

from chassis.errors import FailedPrecondition
from engine.config.advice import setting
from engine.config.micro_batch import shrink
from finetuneflow.v1.event_pb2 import ConfigResolved, Severity, StageFailed, StateChanged, Warning
from finetuneflow.v1.fine_tuning_job_pb2 import Fault
from gateway.sql.tables import Attempt, Work, now
from gateway.work.kinds import FINE_TUNING_JOB, KINDS, queue_of
from gateway.work.ledger import Decision

TERMINAL = frozenset({"JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"})
# States in which a READY attempt may be claimed.
RUNNABLE = frozenset({"JOB_STATE_VALIDATING", "JOB_STATE_QUEUED", "JOB_STATE_RUNNING"})
_AFTER_TRAINING = frozenset({"STAGE_EVALUATION", "STAGE_EXPORT"})
_MAX_BACKOFF_SECONDS = 60.0
_OUTAGES = frozenset({"HUB_UNREACHABLE", "DISK_FULL", "STORE_FULL", "UPLOAD_FAILED"})
"""Reasons that another worker would meet as well, for as long as an outage lasts or until somebody makes room."""
_OUTAGE_BACKOFF_SECONDS = 30.0
POISON = "POISON"
"""The reason of work that was given up after it lost its workers."""
_OUT_OF_MEMORY = frozenset({"CUDA_OUT_OF_MEMORY", "HOST_OUT_OF_MEMORY"})
# Reasons of attempts that left nobody to report a cause.
_WORKER_LOST = frozenset({"KILLED", "LEASE_EXPIRED", "STALLED", "CRASHED"})


@dataclass(frozen=True)
class Completed:
    """The stage is done. `reason` becomes the work's after its last stage."""

    reason: str = "COMPLETED"


@dataclass(frozen=True)
class Failed:
    """The attempt failed."""

    failure: StageFailed


@dataclass(frozen=True)
class Released:
    """The worker let go on request."""

    reason: str


Outcome = Completed | Failed | Released


def transition(
    decision: Decision,
    state: str,
    *,
    stage: str = "",
    reason: str = "",
    message: str = "",
    fault: str = "FAULT_UNSPECIFIED",
    advice: str = "",
    node_id: str = "",
) -> None:
    """Changes the state and appends the StateChanged event."""
    work = decision.work
    work.state, work.stage = state, stage or work.stage
    work.reason, work.message, work.fault, work.advice = reason, message, fault, advice
    if state in TERMINAL:
        work.end_time = now()
    decision.append(
        StateChanged(
            state=state,
            stage=work.stage,
            reason=reason,
            message=message,
            fault=fault,
            advice=advice,
            node_id=node_id,
        ),
        Severity.SEVERITY_ERROR if state == "JOB_STATE_FAILED" else Severity.SEVERITY_INFO,
    )


def open_attempt(decision: Decision, stage: str, *, reason: str = "", message: str = "", delay: float = 0) -> None:
    """Opens a READY attempt at `stage`, numbered after the last one there and due in `delay` seconds."""
    work = decision.work
    work.attempt = work.attempt + 1 if stage == work.stage else 1
    decision.attempt = decision.ready = Attempt(
        work_id=work.id,
        stage=stage,
        attempt=work.attempt,
        tenant=work.tenant,
        pool=queue_of(stage, work.pool)[1],
        rank=-work.priority,
        not_before=now() + int(delay * 1e6) if delay else 0,
        create_time=now(),
    )
    for field in ("phase", "phase_index", "phase_count", "phase_fraction"):
        decision.progress.ClearField(field)
    state = "JOB_STATE_VALIDATING" if stage == "STAGE_PREFLIGHT" else "JOB_STATE_QUEUED"
    transition(decision, state, stage=stage, reason=reason, message=message)


def claim(decision: Decision, attempt: Attempt, claim_id: str, node_id: str) -> None:
    """Gives the attempt to `node_id`."""
    attempt.state, attempt.claim_id, attempt.node_id = "CLAIMED", claim_id, node_id
    attempt.claim_time = now()
    attempt.gpus = _gpus(decision.work) if attempt.stage == "STAGE_TRAINING" else 0
    state = "JOB_STATE_VALIDATING" if attempt.stage == "STAGE_PREFLIGHT" else "JOB_STATE_RUNNING"
    transition(decision, state, node_id=node_id)


def end_attempt(decision: Decision, attempt: Attempt, outcome: Outcome) -> None:
    """Ends an attempt and decides how the work continues."""
    work = decision.work
    smaller = isinstance(outcome, Failed) and _shrink(decision, outcome.failure)
    counted = isinstance(outcome, Failed) and not smaller and _counts_as_failed_attempt(decision, outcome.failure)
    work.failed_attempts += counted
    _close(decision, attempt, "OUT_OF_MEMORY" if smaller else type(outcome).__name__.upper(), counted=counted)
    match outcome:
        case Failed(failure):
            attempt.reason, attempt.message = failure.reason, failure.message
        case Completed(reason) | Released(reason):
            attempt.reason = reason
    if work.state == "JOB_STATE_CANCELLING":
        transition(decision, "JOB_STATE_CANCELLED", reason="CANCELLED", message=_on_request(work, "cancelled"))
    elif isinstance(outcome, Completed):
        _after_completion(decision, outcome)
    elif isinstance(outcome, Failed):
        _after_failure(decision, outcome.failure, counted=counted)
    elif work.state == "JOB_STATE_PAUSING":
        transition(decision, "JOB_STATE_PAUSED", reason="PAUSED", message=_on_request(work, "paused"))
    else:
        open_attempt(
            decision,
            work.stage,
            reason=outcome.reason,
            message=f"The worker released the {_noun(work)}; the next free worker {_resumption(work)}.",
        )


def _counts_as_failed_attempt(decision: Decision, failure: StageFailed) -> bool:
    """Returns True if a failure counts against max_attempts.

    A failure while PAUSING or CANCELLING does not: it ends in that pause or cancellation and is not retried.
    """
    if decision.work.state == "JOB_STATE_PAUSING":
        return failure.fault == Fault.FAULT_USER_ERROR
    return decision.work.state != "JOB_STATE_CANCELLING"


def _close(decision: Decision, attempt: Attempt, outcome: str, *, counted: bool = False) -> None:
    attempt.state, attempt.outcome, attempt.counted, attempt.end_time = "ENDED", outcome, counted, now()
    decision.attempt = None


def _after_completion(decision: Decision, outcome: Completed) -> None:
    work = decision.work
    plan = KINDS[work.kind].plan
    if work.stage == plan[-1]:
        transition(decision, "JOB_STATE_SUCCEEDED", reason=outcome.reason)
        return
    following = plan[plan.index(work.stage) + 1]
    if work.state == "JOB_STATE_PAUSING":
        work.attempt = 0
        message = _on_request(work, "paused")
        transition(decision, "JOB_STATE_PAUSED", stage=following, reason="PAUSED", message=message)
    else:
        open_attempt(decision, following)


def _shrink(decision: Decision, failure: StageFailed) -> bool:
    """Halves the micro-batch of a training that ran out of memory; False where it cannot be halved.

    The next attempt continues from the latest checkpoint. Halvings are not counted as failures, because the next
    attempt differs; there are at most ten."""
    work = decision.work
    if failure.reason not in _OUT_OF_MEMORY or failure.fault == Fault.FAULT_USER_ERROR:
        return False
    if work.stage != "STAGE_TRAINING" or work.config is None or work.state == "JOB_STATE_CANCELLING":
        return False
    config = ConfigResolved.FromString(work.config)
    changes = shrink(config.resolved_spec, config.resolutions, f"attempt {work.attempt} failed: {failure.reason}")
    if not changes:
        return False
    work.config = config.SerializeToString()
    decision.append(
        Warning(
            reason=failure.reason,
            message="The training ran out of memory. It continues from its latest checkpoint with "
            f"{', '.join(changes)}; each step still trains the same rows.",
            advice=failure.advice,
        )
    )
    decision.append(config)
    return True


def _after_failure(decision: Decision, failure: StageFailed, *, counted: bool) -> None:
    work = decision.work
    if failure.fault == Fault.FAULT_USER_ERROR:
        _fail(decision, failure, failure.reason, failure.message, failure.advice)
    elif work.state == "JOB_STATE_PAUSING":
        transition(decision, "JOB_STATE_PAUSED", reason=failure.reason, message=failure.message)
    elif counted and (work.failed_attempts >= work.max_attempts or _lacks_memory(work, failure)):
        _give_up(decision, failure)
    else:
        delay = _backoff(work.failed_attempts, failure.reason) if counted else 0.0
        open_attempt(
            decision, work.stage, reason="RETRYING", message=f"{failure.reason}: {failure.message}", delay=delay
        )


def _backoff(failures: int, reason: str) -> float:
    """Returns the seconds before the next attempt after so many failures: 30, 60, 60 … after an outage, else 0, 2, 4, 8
    … up to 60, because most first failures are a killed process."""
    if reason in _OUTAGES:
        return min(_OUTAGE_BACKOFF_SECONDS * failures, _MAX_BACKOFF_SECONDS)
    return min(2.0 ** (failures - 1), _MAX_BACKOFF_SECONDS) if failures > 1 else 0.0


def _give_up(decision: Decision, failure: StageFailed) -> None:
    """Ends the work after the last failure that max_attempts allows.

    Work that lost its worker more than once gets the reason POISON: KILLED alone would read as an accident."""
    tries = decision.work.failed_attempts
    reason, message, advice = failure.reason, failure.message, failure.advice
    if tries > 1 and reason in _WORKER_LOST:
        message = (
            f"The {_noun(decision.work)} is not tried again: {tries} attempts failed. In the last one the worker was "
            f"lost ({reason}): {message}"
        )
        advice = (
            "Its attempts show the node and the reason of each failure. Ask the operator to check these nodes, then "
            f"create the {_noun(decision.work)} again. {advice}"
        ).rstrip()
        reason = POISON
    elif tries > 1:
        message += f" (given up after {tries} failures)"
    if _lacks_memory(decision.work, failure) and _micro_batch(decision.work) == 1:
        advice = (
            "One row at a time does not fit: lower hyperparameters.max_length, set "
            f"{setting('hyperparameters.gradient_checkpointing', 'true')}, set {setting('method', 'qlora')}, or use a "
            "smaller base model or a machine with more memory."
        )
    _fail(decision, failure, reason, message, advice)


def _fail(decision: Decision, failure: StageFailed, reason: str, message: str, advice: str) -> None:
    fault = Fault.Name(failure.fault)
    work = decision.work
    if work.kind == FINE_TUNING_JOB.name and work.stage in _AFTER_TRAINING:
        kept = (
            "The model is trained and its best checkpoint is kept. To export it without training again, in these or "
            f"other forms: `ftf export {work.id} --format adapter --format merged`."
        )
        advice = f"{advice} {kept}".lstrip()
    transition(decision, "JOB_STATE_FAILED", reason=reason, message=message, fault=fault, advice=advice)


def _lacks_memory(work: Work, failure: StageFailed) -> bool:
    """Returns True if a training ran out of memory. It would fail again: `_shrink` could not halve its micro-batch,
    because otherwise the failure would not have been counted."""
    return failure.reason in _OUT_OF_MEMORY and work.stage == "STAGE_TRAINING"


def _resumption(work: Work) -> str:
    """Returns what a worker does with work that another one has released: only a training leaves checkpoints."""
    if work.stage == "STAGE_TRAINING":
        return "continues it from its latest checkpoint"
    stage = work.stage.removeprefix("STAGE_").lower()
    return f"starts {'it' if stage == _noun(work) else f'its {stage}'} again"


def _noun(work: Work) -> str:
    return KINDS[work.kind].noun


def _on_request(work: Work, verb: str) -> str:
    return f"The {_noun(work)} was {verb} on request."


def _micro_batch(work: Work) -> int:
    """The micro-batch of a training in rows; 0 before preflight has resolved it."""
    if work.config is None:
        return 0
    return ConfigResolved.FromString(work.config).resolved_spec.hyperparameters.per_device_train_batch_size


def _gpus(work: Work) -> int:
    """Returns the number of GPUs of a training; 0 before preflight has resolved it."""
    return 0 if work.config is None else ConfigResolved.FromString(work.config).resolved_spec.resources.gpus


def cancel(decision: Decision) -> None:
    work, attempt = decision.work, decision.attempt
    if work.state in ("JOB_STATE_CANCELLED", "JOB_STATE_CANCELLING"):
        return
    _refuse_if_ended(decision, "cancelled")
    if attempt is not None and attempt.state == "CLAIMED":
        transition(decision, "JOB_STATE_CANCELLING", reason="CANCEL_REQUESTED", message="The worker is stopping.")
        return
    if attempt is not None:
        _close(decision, attempt, "CANCELLED")
    transition(decision, "JOB_STATE_CANCELLED", reason="CANCELLED", message=_on_request(work, "cancelled"))


def pause(decision: Decision) -> None:
    work, attempt = decision.work, decision.attempt
    if work.state in ("JOB_STATE_PAUSED", "JOB_STATE_PAUSING"):
        return
    _refuse_if_ended(decision, "paused")
    if attempt is not None and attempt.state == "CLAIMED":
        message = f"The worker is saving a checkpoint, then the {_noun(work)} is paused."
        transition(decision, "JOB_STATE_PAUSING", reason="PAUSE_REQUESTED", message=message)
        return
    if attempt is not None:
        _close(decision, attempt, "PAUSED")
    transition(decision, "JOB_STATE_PAUSED", reason="PAUSED", message=_on_request(work, "paused"))


def resume(decision: Decision) -> None:
    work = decision.work
    if work.state == "JOB_STATE_PAUSED":
        open_attempt(decision, work.stage, reason="RESUMED", message=_on_request(work, "resumed"))
    elif work.state == "JOB_STATE_PAUSING":
        state = "JOB_STATE_VALIDATING" if work.stage == "STAGE_PREFLIGHT" else "JOB_STATE_RUNNING"
        transition(decision, state, reason="RESUMED", message=f"The {_noun(work)} was resumed before it was paused.")
    else:
        _refuse_if_ended(decision, "resumed")


def _refuse_if_ended(decision: Decision, verb: str) -> None:
    work = decision.work
    if work.state in TERMINAL or work.state == "JOB_STATE_CANCELLING":
        state = work.state.removeprefix("JOB_STATE_")
        raise FailedPrecondition(
            "ILLEGAL_TRANSITION", f"The {KINDS[work.kind].noun} {work.id} is {state} and cannot be {verb}."
        )
