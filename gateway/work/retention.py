"""Prunes checkpoints, in the decision that accepts a newer one: no worker, and no zombie, deletes an accepted one."""

import logging

from sqlmodel import col, select

from chassis.failpoints import failpoint
from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1.event_pb2 import CheckpointPruned, ConfigResolved
from gateway.sql.tables import SavedCheckpoint
from gateway.uncancellable import in_thread
from gateway.work.ledger import Decision

log = logging.getLogger(__name__)

_ALWAYS_KEPT = 2
"""Newest ones: the newest may turn out damaged when it is resumed from."""


async def prune_checkpoints(decision: Decision) -> None:
    """Keeps the best, the newest two, and as many more as save_total_limit allows."""
    if decision.work.config is None:
        return
    limit = ConfigResolved.FromString(decision.work.config).resolved_spec.hyperparameters.save_total_limit
    query = select(SavedCheckpoint).where(
        SavedCheckpoint.work_id == decision.work.id, col(SavedCheckpoint.pruned).is_(False)
    )
    newest_first = (await decision.session.exec(query.order_by(col(SavedCheckpoint.sequence).desc()))).all()
    kept = {checkpoint.path for checkpoint in newest_first if checkpoint.best}
    for index, checkpoint in enumerate(newest_first):
        if index < _ALWAYS_KEPT or len(kept) < limit:
            kept.add(checkpoint.path)
    for checkpoint in reversed(newest_first):
        if checkpoint.path not in kept:
            checkpoint.pruned = True
            decision.session.add(checkpoint)
            decision.append(CheckpointPruned(step=checkpoint.step, path=checkpoint.path))
            decision.discarded.append(f"{checkpoint.tenant}/{checkpoint.path}")


class Discarder:
    """Deletes from the artifact store what decisions have discarded."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    async def discard(self, paths: list[str]) -> None:
        """Deletes paths. One that cannot be deleted is named in the log and stays until its job is deleted."""
        for path in paths:
            failpoint("discard.begun")
            try:
                await in_thread(self._store.delete, path)
            except OSError as error:
                log.warning("%s is no longer needed and can't be deleted: %s", path, error)
