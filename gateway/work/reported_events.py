"""Checks the events that workers report: one can send only what its own attempt may say, and name only what it made."""

from collections.abc import Iterator
from typing import Final

from sqlmodel import col, select

from finetuneflow.v1.event_pb2 import Event, StageCompleted
from finetuneflow.v1.fine_tuning_job_pb2 import Fault
from gateway.sql.tables import Attempt, SavedArtifact, SavedCheckpoint
from gateway.work.ledger import Decision

SHARDS = "shards"
"""Kind of the artifact that contains token shards, which preflights of the same tenant share."""
MEASUREMENTS = "evaluation_measurements"
"""Kind of the artifacts with losses and answers, which evaluations of the same tenant share."""
_OF_GATEWAYS: Final = ("state_changed", "checkpoint_pruned")


async def problem_of(decision: Decision, attempt: Attempt, event: Event) -> str:
    """Returns what the attempt may not send in the event, as words after "the worker"; "" if it may send it."""
    kind, stage = event.WhichOneof("payload"), attempt.stage.removeprefix("STAGE_").lower()
    if kind in _OF_GATEWAYS:
        return f"sent an event {kind}, which gateways alone send"
    if kind == "config_resolved" and stage != "preflight":
        return f"of stage {stage} sent a configuration"
    if kind == "stage_failed" and event.stage_failed.fault not in Fault.values():
        return f"sent the unknown fault {event.stage_failed.fault}"
    if kind == "stage_completed" and event.stage_completed.WhichOneof("result") not in (None, stage):
        return f"of stage {stage} sent the result of {event.stage_completed.WhichOneof('result')}"
    for path in _own_paths(event):
        if not _is_own(attempt, path):
            return f"named a path that is not its attempt's: {path[:200]!r}"
    if kind == "stage_completed" and (path := await _foreign_path(decision, attempt, event.stage_completed)):
        return f"named a path that is not its attempt's: {path[:200]!r}"
    return ""


def _own_paths(event: Event) -> Iterator[str]:
    match event.WhichOneof("payload"):
        case "checkpoint":
            yield event.checkpoint.path
        case "artifact":
            yield event.artifact.path
        case "stage_completed":
            if event.stage_completed.export.package_path:
                yield event.stage_completed.export.package_path
            if event.stage_completed.evaluation.rows_path:
                yield event.stage_completed.evaluation.rows_path


async def _foreign_path(decision: Decision, attempt: Attempt, completed: StageCompleted) -> str:
    """Returns a path that other attempts may have made, if none has; otherwise ""."""
    if path := completed.preflight.shards_path:
        shared = select(SavedArtifact.id).where(
            SavedArtifact.tenant == decision.work.tenant, SavedArtifact.kind == SHARDS, SavedArtifact.path == path
        )
        if (await decision.session.exec(shared.limit(1))).first() is None:
            return path
    if path := completed.training.best_checkpoint_path:
        accepted = select(SavedCheckpoint.path).where(
            SavedCheckpoint.work_id == attempt.work_id, col(SavedCheckpoint.path) == path
        )
        if (await decision.session.exec(accepted)).first() is None:
            return path
    return ""


def _is_own(attempt: Attempt, path: str) -> bool:
    """Returns True for a plain path below the attempt's own folder."""
    stage = attempt.stage.removeprefix("STAGE_").lower()
    own = ["jobs", attempt.work_id, stage, str(attempt.attempt)]
    parts = path.split("/")
    return (
        parts[: len(own)] == own
        and len(parts) > len(own)
        and not any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts)
    )
