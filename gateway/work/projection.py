"""Projects accepted events onto the tables that are read: progress, curves, checkpoints, artifacts, results."""

from collections.abc import Iterator

from google.protobuf.message import Message
from sqlmodel import col, select, update

from finetuneflow.v1.event_pb2 import CheckpointSaved, Eval, Event, Log, Phase, StageCompleted
from finetuneflow.v1.fine_tuning_job_pb2 import Progress
from finetuneflow.v1.stage_result_pb2 import EvaluationResult, GateDecision, TrainingResult
from gateway.identifiers import new_id
from gateway.sql.tables import SavedArtifact, SavedCheckpoint, SavedResult, Work, now
from gateway.work.kinds import EVALUATION, EXPORT, FINE_TUNING_JOB, Kind
from gateway.work.ledger import ELAPSED_SECONDS, Decision
from gateway.work.retention import prune_checkpoints

_LOG_SERIES = (
    "loss", "learning_rate", "grad_norm", "tokens_per_second", "num_tokens", ELAPSED_SECONDS, "samples_per_second",
    "padded_tokens_per_second", "seconds_per_step", "mfu", "data_seconds", "forward_seconds", "backward_seconds",
    "optimizer_seconds",
)  # fmt: skip
_EVAL_SERIES = ("eval_loss", "perplexity", "eval_runtime_seconds")


async def project(decision: Decision, event: Event, sequence: int) -> None:
    """Applies one event, already accepted as `sequence`, within the decision's transaction."""
    match event.WhichOneof("payload"):
        case "phase":
            _note_phase(decision.progress, event.phase)
        case "log":
            log = event.log
            progress = decision.progress
            progress.step, progress.total_steps, progress.epoch = log.step, log.total_steps, log.epoch
            progress.loss, progress.tokens_per_second = log.loss, log.tokens_per_second
            progress.eta_seconds = log.eta_seconds
            decision.add_points(event, sequence, log.step, log.epoch, points_of(event))
        case "eval":
            evaluation = event.eval
            progress = decision.progress
            progress.eval_loss = evaluation.eval_loss
            if evaluation.best:
                progress.best_eval_loss, progress.best_step = evaluation.eval_loss, evaluation.step
            decision.add_points(event, sequence, evaluation.step, evaluation.epoch, points_of(event))
        case "checkpoint":
            await _add_checkpoint(decision, event, event.checkpoint, sequence)
            await prune_checkpoints(decision)
        case "restored":
            await _restore_best(decision, event.restored.checkpoint_step)
        case "config_resolved":
            decision.work.config = event.config_resolved.SerializeToString()
        case "artifact":
            decision.session.add(_artifact(decision, event))
        case "stage_completed":
            await _add_result(decision, event.stage_completed)


def points_of(event: Event) -> Iterator[tuple[str, float]]:
    """Yields the points of curves in an event: the name of the series and the value."""
    match event.WhichOneof("payload"):
        case "log":
            yield from _values(event.log, _LOG_SERIES)
        case "eval":
            yield from _values(event.eval, _EVAL_SERIES, "eval_")


def _note_phase(progress: Progress, phase: Phase) -> None:
    progress.phase, progress.phase_index, progress.phase_count = phase.name, phase.index, phase.count
    progress.ClearField("phase_fraction")
    if phase.HasField("fraction"):
        progress.phase_fraction = phase.fraction


def _values(payload: Log | Eval, series: tuple[str, ...], prefix: str = "") -> Iterator[tuple[str, float]]:
    # Training and evaluation report extras of the same names. An extra that bears the name of a series takes its place:
    # a point stands once.
    extras = {name if name in series else prefix + name: value for name, value in payload.extras.items()}
    fields = payload.DESCRIPTOR.fields_by_name
    for name in series:
        if name not in extras and (not fields[name].has_presence or payload.HasField(name)):
            yield name, getattr(payload, name)
    yield from extras.items()


async def _add_checkpoint(decision: Decision, event: Event, saved: CheckpointSaved, sequence: int) -> None:
    work = decision.work
    if saved.best:
        others = update(SavedCheckpoint).where(col(SavedCheckpoint.work_id) == work.id)
        await decision.session.exec(others.values(best=False))
    decision.session.add(
        SavedCheckpoint(
            work_id=work.id,
            path=saved.path,
            tenant=work.tenant,
            step=saved.step,
            attempt=event.attempt,
            epoch=saved.epoch,
            manifest_sha256=saved.manifest_sha256,
            size_bytes=saved.size_bytes,
            eval_loss=saved.eval_loss if saved.HasField("eval_loss") else None,
            best=saved.best,
            sequence=sequence,
            create_time=now(),
        )
    )


async def _restore_best(decision: Decision, step: int) -> None:
    """Marks the best checkpoint up to `step`: what an earlier attempt wrote beyond it is no longer part of the run."""
    mine = col(SavedCheckpoint.work_id) == decision.work.id
    await decision.session.exec(update(SavedCheckpoint).where(mine).values(best=False))
    query = select(SavedCheckpoint).where(
        mine,
        col(SavedCheckpoint.pruned).is_(False),
        col(SavedCheckpoint.eval_loss).is_not(None),
        SavedCheckpoint.step <= step,
    )
    # Two attempts that made the same step measured the same loss: the last key decides between them.
    order = (col(SavedCheckpoint.eval_loss), col(SavedCheckpoint.step), col(SavedCheckpoint.sequence))
    best = (await decision.session.exec(query.order_by(*order))).first()
    if best is not None:
        best.best = True
        decision.session.add(best)


def _artifact(decision: Decision, event: Event) -> SavedArtifact:
    saved = event.artifact
    # Paths are jobs/<work>/<stage>/<attempt>/<name>; callers see the stage and the name.
    parts = saved.path.split("/")
    name = "/".join([parts[2], *parts[4:]]) if len(parts) > 4 else saved.path
    return SavedArtifact(
        id=new_id("ar"),
        tenant=decision.work.tenant,
        work_id=decision.work.id,
        name=name,
        kind=saved.kind,
        path=saved.path,
        sha256=saved.sha256,
        size_bytes=saved.size_bytes,
        media_type=saved.media_type,
        create_time=now(),
    )


async def _add_result(decision: Decision, completed: StageCompleted) -> None:
    work = decision.work
    match completed.WhichOneof("result"):
        case "preflight":
            work.preflight = completed.preflight.SerializeToString()
            decision.progress.total_steps = completed.preflight.total_steps
        case "training":
            work.training = completed.training.SerializeToString()
        case "evaluation":
            await _save_result(decision, EVALUATION, completed.evaluation)
        case "export":
            await _save_result(decision, EXPORT, completed.export)


async def _save_result(decision: Decision, kind: Kind, result: Message) -> None:
    """Completes the resource that was created with the work, or adds the one that a job leaves."""
    work = decision.work
    if work.kind == FINE_TUNING_JOB.name:
        saved: SavedResult | None = new_result(work, kind, new_id(kind.prefix))
    else:
        saved = await decision.session.get(SavedResult, work.id)
    if saved is None:
        raise RuntimeError(f"{work.id} has no row in {SavedResult.__tablename__}")
    saved.result = result.SerializeToString()
    if isinstance(result, EvaluationResult) and result.HasField("gate"):
        saved.decision = GateDecision.Name(result.gate.decision)
    if isinstance(result, EvaluationResult):
        saved.shown_regression = result.shown_regression
    decision.session.add(saved)


def new_result(work: Work, kind: Kind, id_: str) -> SavedResult:
    """The resource that `work` makes, without its result."""
    return SavedResult(
        id=id_, tenant=work.tenant, kind=kind.name, job_id=work.job_id or work.id, work_id=work.id, create_time=now()
    )


def completion_reason(training: bytes | None) -> str:
    """Why a job that reached its end ended: EARLY_STOPPED or COMPLETED."""
    early = training is not None and TrainingResult.FromString(training).early_stopped
    return "EARLY_STOPPED" if early else "COMPLETED"
