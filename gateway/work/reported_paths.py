"""Checks the paths in the artifact store that workers report, so that one can name only what its own attempt made."""

from sqlmodel import col, select

from finetuneflow.v1.event_pb2 import Event, StageCompleted
from gateway.sql.tables import Attempt, SavedArtifact, SavedCheckpoint
from gateway.work.ledger import Decision

SHARDS = "shards"
"""Kind of the artifact that contains token shards, which preflights of the same tenant share."""


async def foreign_path(decision: Decision, attempt: Attempt, event: Event) -> str:
    """Returns a path of the event that its attempt may not name; "" if there is none."""
    match event.WhichOneof("payload"):
        case "checkpoint":
            return "" if _is_own(attempt, event.checkpoint.path) else event.checkpoint.path
        case "artifact":
            return "" if _is_own(attempt, event.artifact.path) else event.artifact.path
        case "stage_completed":
            return await _foreign_result(decision, attempt, event.stage_completed)
    return ""


async def _foreign_result(decision: Decision, attempt: Attempt, completed: StageCompleted) -> str:
    match completed.WhichOneof("result"):
        case "preflight":
            path = completed.preflight.shards_path
            shared = select(SavedArtifact.id).where(
                SavedArtifact.tenant == decision.work.tenant, SavedArtifact.kind == SHARDS, SavedArtifact.path == path
            )
            if path and (await decision.session.exec(shared.limit(1))).first() is None:
                return path
        case "training":
            path = completed.training.best_checkpoint_path
            accepted = select(SavedCheckpoint.path).where(
                SavedCheckpoint.work_id == attempt.work_id, col(SavedCheckpoint.path) == path
            )
            if path and (await decision.session.exec(accepted)).first() is None:
                return path
        case "export":
            path = completed.export.package_path
            return "" if not path or _is_own(attempt, path) else path
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
