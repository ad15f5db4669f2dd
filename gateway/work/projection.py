"""What accepted events mean for the tables that are read: progress, curves, checkpoints, artifacts, results."""

from collections.abc import Iterator

from sqlmodel import col, select, update

from finetuneflow.v1.event_pb2 import CheckpointSaved, Eval, Event, Log
from finetuneflow.v1.stage_result_pb2 import TrainingResult
from gateway.identifiers import new_id
from gateway.sql.tables import JobEvaluation, JobExport, SavedArtifact, SavedCheckpoint, now
from gateway.work.ledger import ELAPSED_SECONDS, Decision
from gateway.work.retention import prune_checkpoints

_LOG_SERIES = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "num_tokens", ELAPSED_SECONDS)
_EVAL_SERIES = ("eval_loss", "perplexity", "eval_runtime_seconds")


async def project(decision: Decision, event: Event, sequence: int) -> None:
    """Applies one event, already accepted as `sequence`, within the decision's transaction."""
    job = decision.job
    match event.WhichOneof("payload"):
        case "log":
            log = event.log
            progress = decision.progress
            progress.step, progress.total_steps, progress.epoch = log.step, log.total_steps, log.epoch
            progress.loss, progress.tokens_per_second = log.loss, log.tokens_per_second
            progress.eta_seconds = log.eta_seconds
            decision.measure(event, sequence, log.step, log.epoch, _values(log, _LOG_SERIES))
        case "eval":
            evaluation = event.eval
            progress = decision.progress
            progress.eval_loss = evaluation.eval_loss
            if evaluation.best:
                progress.best_eval_loss, progress.best_step = evaluation.eval_loss, evaluation.step
            decision.measure(event, sequence, evaluation.step, evaluation.epoch, _values(evaluation, _EVAL_SERIES))
        case "checkpoint":
            await _add_checkpoint(decision, event, event.checkpoint, sequence)
            await prune_checkpoints(decision)
        case "restored":
            await _restore_best(decision, event.restored.checkpoint_step)
        case "config_resolved":
            job.config = event.config_resolved.SerializeToString()
        case "artifact":
            decision.session.add(_artifact(decision, event))
        case "stage_completed":
            _add_result(decision, event)


def _values(payload: Log | Eval, series: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    # An extra that bears the name of a series takes its place: a point stands once.
    extras = payload.extras
    for name in series:
        if name not in extras:
            yield name, getattr(payload, name)
    yield from extras.items()


async def _add_checkpoint(decision: Decision, event: Event, saved: CheckpointSaved, sequence: int) -> None:
    job = decision.job
    if saved.best:
        others = update(SavedCheckpoint).where(col(SavedCheckpoint.job_id) == job.id)
        await decision.session.exec(others.values(best=False))
    decision.session.add(
        SavedCheckpoint(
            job_id=job.id,
            path=saved.path,
            tenant=job.tenant,
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
    """What an earlier attempt wrote beyond `step` is off the run: the best is found among what it went on from."""
    mine = col(SavedCheckpoint.job_id) == decision.job.id
    await decision.session.exec(update(SavedCheckpoint).where(mine).values(best=False))
    query = select(SavedCheckpoint).where(
        mine,
        col(SavedCheckpoint.pruned).is_(False),
        col(SavedCheckpoint.eval_loss).is_not(None),
        SavedCheckpoint.step <= step,
    )
    # Two attempts that made the same step measured the same loss: without the last key any of both would come.
    order = (col(SavedCheckpoint.eval_loss), col(SavedCheckpoint.step), col(SavedCheckpoint.sequence))
    best = (await decision.session.exec(query.order_by(*order))).first()
    if best is not None:
        best.best = True
        decision.session.add(best)


def _artifact(decision: Decision, event: Event) -> SavedArtifact:
    saved = event.artifact
    # Paths are jobs/<job>/<stage>/<attempt>/<name>; what callers see is the stage and the name.
    parts = saved.path.split("/")
    name = "/".join([parts[2], *parts[4:]]) if len(parts) > 4 else saved.path
    return SavedArtifact(
        id=new_id("ar"),
        tenant=decision.job.tenant,
        job_id=decision.job.id,
        name=name,
        kind=saved.kind,
        path=saved.path,
        sha256=saved.sha256,
        size_bytes=saved.size_bytes,
        media_type=saved.media_type,
        create_time=now(),
    )


def _add_result(decision: Decision, event: Event) -> None:
    job, completed = decision.job, event.stage_completed
    match completed.WhichOneof("result"):
        case "preflight":
            job.preflight = completed.preflight.SerializeToString()
            decision.progress.total_steps = completed.preflight.total_steps
        case "training":
            job.training = completed.training.SerializeToString()
        case "evaluation":
            decision.session.add(
                JobEvaluation(
                    id=new_id("ev"),
                    tenant=job.tenant,
                    job_id=job.id,
                    result=completed.evaluation.SerializeToString(),
                    create_time=now(),
                )
            )
        case "export":
            decision.session.add(
                JobExport(
                    id=new_id("ex"),
                    tenant=job.tenant,
                    job_id=job.id,
                    result=completed.export.SerializeToString(),
                    create_time=now(),
                )
            )


def completion_reason(training: bytes | None) -> str:
    """Why a job that reached its end ended: EARLY_STOPPED or COMPLETED."""
    early = training is not None and TrainingResult.FromString(training).early_stopped
    return "EARLY_STOPPED" if early else "COMPLETED"
