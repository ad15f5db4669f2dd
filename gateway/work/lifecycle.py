"""The life of a job: which attempt is opened, how one ends, and what the verbs do. Pure decisions, no I/O but rows."""

from dataclasses import dataclass

from chassis.errors import FailedPrecondition
from engine.config.micro_batch import shrink
from finetuneflow.v1.event_pb2 import ConfigResolved, Severity, StageFailed, StateChanged, Warning
from finetuneflow.v1.fine_tuning_job_pb2 import Fault
from gateway.sql.tables import Attempt, Job, now
from gateway.work.ledger import Decision

STAGES = ("STAGE_PREFLIGHT", "STAGE_TRAINING", "STAGE_EVALUATION", "STAGE_EXPORT")
SERVICES = dict(zip(STAGES, ("probe", "trainer", "evaluator", "exporter"), strict=True))
TERMINAL = frozenset({"JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"})
# States in which a READY attempt may be claimed.
RUNNABLE = frozenset({"JOB_STATE_VALIDATING", "JOB_STATE_QUEUED", "JOB_STATE_RUNNING"})
_MAX_BACKOFF_SECONDS = 60
POISON = "POISON"
"""The reason of a job that was given up after it lost its workers."""
_OUT_OF_MEMORY = frozenset({"CUDA_OUT_OF_MEMORY", "HOST_OUT_OF_MEMORY"})
# Nobody was left to say why.
_WORKER_LOST = frozenset({"KILLED", "LEASE_EXPIRED", "STALLED", "CRASHED"})


@dataclass(frozen=True)
class Completed:
    """The stage is done. `reason` becomes the job's when it was the last stage."""

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
    """Moves the job and appends the event that says so."""
    job = decision.job
    job.state, job.stage = state, stage or job.stage
    job.reason, job.message, job.fault, job.advice = reason, message, fault, advice
    if state in TERMINAL:
        job.end_time = now()
    decision.append(
        StateChanged(
            state=state,
            stage=job.stage,
            reason=reason,
            message=message,
            fault=fault,
            advice=advice,
            node_id=node_id,
        ),
        Severity.SEVERITY_ERROR if state == "JOB_STATE_FAILED" else Severity.SEVERITY_INFO,
    )


def open_attempt(decision: Decision, stage: str, *, reason: str = "", message: str = "", delay: float = 0) -> None:
    """A READY attempt at `stage`, numbered after the job's last one there; due in `delay` seconds."""
    job = decision.job
    job.attempt = job.attempt + 1 if stage == job.stage else 1
    decision.attempt = decision.ready = Attempt(
        job_id=job.id,
        stage=stage,
        attempt=job.attempt,
        tenant=job.tenant,
        pool=job.pool,
        not_before=now() + int(delay * 1e6) if delay else 0,
        create_time=now(),
    )
    state = "JOB_STATE_VALIDATING" if stage == "STAGE_PREFLIGHT" else "JOB_STATE_QUEUED"
    transition(decision, state, stage=stage, reason=reason, message=message)


def claim(decision: Decision, attempt: Attempt, claim_id: str, node_id: str) -> None:
    """The attempt is `node_id`'s from here on."""
    attempt.state, attempt.claim_id, attempt.node_id = "CLAIMED", claim_id, node_id
    attempt.claim_time = now()
    state = "JOB_STATE_VALIDATING" if attempt.stage == "STAGE_PREFLIGHT" else "JOB_STATE_RUNNING"
    transition(decision, state, node_id=node_id)


def end_attempt(decision: Decision, attempt: Attempt, outcome: Outcome) -> None:
    """Ends an attempt and decides what comes of the job."""
    job = decision.job
    smaller = isinstance(outcome, Failed) and _shrink(decision, outcome.failure)
    counted = isinstance(outcome, Failed) and not smaller and _counts(decision, outcome.failure)
    job.failed_attempts += counted
    _close(decision, attempt, "OUT_OF_MEMORY" if smaller else type(outcome).__name__.upper(), counted=counted)
    match outcome:
        case Failed(failure):
            attempt.reason, attempt.message = failure.reason, failure.message
        case Completed(reason) | Released(reason):
            attempt.reason = reason
    if job.state == "JOB_STATE_CANCELLING":
        transition(decision, "JOB_STATE_CANCELLED", reason="CANCELLED", message="cancelled on request")
    elif isinstance(outcome, Completed):
        _after_completion(decision, outcome)
    elif isinstance(outcome, Failed):
        _after_failure(decision, outcome.failure, counted=counted)
    elif job.state == "JOB_STATE_PAUSING":
        transition(decision, "JOB_STATE_PAUSED", reason="PAUSED", message="paused on request")
    else:
        open_attempt(decision, job.stage, reason=outcome.reason, message="its worker let go; the next free one goes on")


def _counts(decision: Decision, failure: StageFailed) -> bool:
    """A failure on the way to a pause ends in that pause, as one on the way to the end ends there: neither is tried
    again, and neither brings the job nearer to being given up."""
    if decision.job.state == "JOB_STATE_PAUSING":
        return failure.fault == Fault.FAULT_USER_ERROR
    return decision.job.state != "JOB_STATE_CANCELLING"


def _close(decision: Decision, attempt: Attempt, outcome: str, *, counted: bool = False) -> None:
    attempt.state, attempt.outcome, attempt.counted, attempt.end_time = "ENDED", outcome, counted, now()
    decision.attempt = None


def _after_completion(decision: Decision, outcome: Completed) -> None:
    job = decision.job
    if job.stage == STAGES[-1]:
        transition(decision, "JOB_STATE_SUCCEEDED", reason=outcome.reason)
        return
    following = STAGES[STAGES.index(job.stage) + 1]
    if job.state == "JOB_STATE_PAUSING":
        job.attempt = 0
        transition(decision, "JOB_STATE_PAUSED", stage=following, reason="PAUSED", message="paused on request")
    else:
        open_attempt(decision, following)


def _shrink(decision: Decision, failure: StageFailed) -> bool:
    """A training that ran out of memory goes on from its newest checkpoint with half the micro-batch. It ends after
    at most ten halvings, and each is no failure: the next attempt is not the same one again."""
    job = decision.job
    if failure.reason not in _OUT_OF_MEMORY or failure.fault == Fault.FAULT_USER_ERROR:
        return False
    if job.stage != "STAGE_TRAINING" or job.config is None or job.state == "JOB_STATE_CANCELLING":
        return False
    config = ConfigResolved.FromString(job.config)
    changes = shrink(config.resolved_spec, config.resolutions, f"attempt {job.attempt} failed: {failure.reason}")
    if not changes:
        return False
    job.config = config.SerializeToString()
    decision.append(
        Warning(
            reason=failure.reason,
            message=f"Memory ran out. The training goes on from its newest checkpoint with {', '.join(changes)}: "
            "the rows of a step stay the same.",
            advice=failure.advice,
        )
    )
    decision.append(config)
    return True


def _after_failure(decision: Decision, failure: StageFailed, *, counted: bool) -> None:
    job = decision.job
    if failure.fault == Fault.FAULT_USER_ERROR:
        _fail(decision, failure, failure.reason, failure.message, failure.advice)
    elif job.state == "JOB_STATE_PAUSING":
        transition(decision, "JOB_STATE_PAUSED", reason=failure.reason, message=failure.message)
    elif counted and (job.failed_attempts >= job.max_attempts or _lacks_memory(job, failure)):
        _give_up(decision, failure)
    else:
        # The first retry is immediate: most failures are a killed process. Then 2, 4, 8 … seconds.
        delay = (
            min(2.0 ** (job.failed_attempts - 1), _MAX_BACKOFF_SECONDS) if counted and job.failed_attempts > 1 else 0
        )
        open_attempt(
            decision, job.stage, reason="RETRYING", message=f"{failure.reason}: {failure.message}", delay=delay
        )


def _give_up(decision: Decision, failure: StageFailed) -> None:
    """The last failure that max_attempts allows. A job whose worker was lost again is poison: it says so in the place
    of KILLED, which alone reads as an accident."""
    tries = decision.job.failed_attempts
    reason, message, advice = failure.reason, failure.message, failure.advice
    if tries > 1 and reason in _WORKER_LOST:
        message = f"Given up as poison: {tries} attempts failed, and the last one lost its worker: {reason}: {message}"
        advice = (
            "It is not tried again, lest it goes on taking workers from other jobs. The job's attempts say how each "
            f"of them ended, and on which node. {advice}"
        ).rstrip()
        reason = POISON
    elif tries > 1:
        message += f" (given up after {tries} failures)"
    if _lacks_memory(decision.job, failure) and _micro_batch(decision.job) == 1:
        advice = (
            "One row at a time does not fit: lower hyperparameters.max_length, switch gradient_checkpointing on, use "
            "method qlora, a smaller base model or a machine with more memory."
        )
    _fail(decision, failure, reason, message, advice)


def _fail(decision: Decision, failure: StageFailed, reason: str, message: str, advice: str) -> None:
    fault = Fault.Name(failure.fault)
    transition(decision, "JOB_STATE_FAILED", reason=reason, message=message, fault=fault, advice=advice)


def _lacks_memory(job: Job, failure: StageFailed) -> bool:
    """A training that can't take fewer rows at once would run out of memory at the same place again."""
    return failure.reason in _OUT_OF_MEMORY and job.stage == "STAGE_TRAINING"


def _micro_batch(job: Job) -> int:
    """Rows that a training takes at once; 0 while that is not known."""
    if job.config is None:
        return 0
    return ConfigResolved.FromString(job.config).resolved_spec.hyperparameters.per_device_train_batch_size


def cancel(decision: Decision) -> None:
    job, attempt = decision.job, decision.attempt
    if job.state in ("JOB_STATE_CANCELLED", "JOB_STATE_CANCELLING"):
        return
    _refuse_if_ended(decision, "cancelled")
    if attempt is not None and attempt.state == "CLAIMED":
        transition(decision, "JOB_STATE_CANCELLING", reason="CANCEL_REQUESTED", message="its worker is stopping")
        return
    if attempt is not None:
        _close(decision, attempt, "CANCELLED")
    transition(decision, "JOB_STATE_CANCELLED", reason="CANCELLED", message="cancelled on request")


def pause(decision: Decision) -> None:
    job, attempt = decision.job, decision.attempt
    if job.state in ("JOB_STATE_PAUSED", "JOB_STATE_PAUSING"):
        return
    _refuse_if_ended(decision, "paused")
    if attempt is not None and attempt.state == "CLAIMED":
        transition(decision, "JOB_STATE_PAUSING", reason="PAUSE_REQUESTED", message="its worker writes a checkpoint")
        return
    if attempt is not None:
        _close(decision, attempt, "PAUSED")
    transition(decision, "JOB_STATE_PAUSED", reason="PAUSED", message="paused on request")


def resume(decision: Decision) -> None:
    job = decision.job
    if job.state == "JOB_STATE_PAUSED":
        open_attempt(decision, job.stage, reason="RESUMED", message="resumed on request")
    elif job.state == "JOB_STATE_PAUSING":
        state = "JOB_STATE_VALIDATING" if job.stage == "STAGE_PREFLIGHT" else "JOB_STATE_RUNNING"
        transition(decision, state, reason="RESUMED", message="resumed before it was paused")
    else:
        _refuse_if_ended(decision, "resumed")


def _refuse_if_ended(decision: Decision, verb: str) -> None:
    job = decision.job
    if job.state in TERMINAL or job.state == "JOB_STATE_CANCELLING":
        state = job.state.removeprefix("JOB_STATE_")
        raise FailedPrecondition("ILLEGAL_TRANSITION", f"job {job.id} is {state} and can't be {verb}")
