"""The final content of SQL that the checker reads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlmodel import SQLModel, col, select

from finetuneflow.v1.event_pb2 import Event
from gateway.sql.database import Database
from gateway.sql.tables import Attempt, SavedArtifact, SavedCheckpoint, SavedResult, Work, WorkEvent
from gateway.work.kinds import FINE_TUNING_JOB

Row = TypeVar("Row", bound=SQLModel)


@dataclass
class WorkHistory:
    """The rows of one job, evaluation or export in SQL."""

    work: Work
    attempts: Sequence[Attempt]
    """Attempts ordered by stage and number; creation times follow a clock that is set during the run."""
    rows: Sequence[WorkEvent]
    """Events ordered by sequence."""
    checkpoints: Sequence[SavedCheckpoint]
    artifacts: Sequence[SavedArtifact]
    results: Sequence[SavedResult]

    def events(self) -> list[Event]:
        return [Event.FromString(row.event) for row in self.rows]


def read_histories(database_url: str) -> dict[str, WorkHistory]:
    """Returns all work of every kind by id."""
    return asyncio.run(_read(database_url))


async def _read(url: str) -> dict[str, WorkHistory]:
    database = await Database.open(url)
    try:
        async with database.read() as session:
            all_work = (await session.exec(select(Work))).all()
            attempts = (await session.exec(select(Attempt))).all()
            events = (await session.exec(select(WorkEvent).order_by(col(WorkEvent.sequence)))).all()
            checkpoints = (await session.exec(select(SavedCheckpoint).order_by(col(SavedCheckpoint.sequence)))).all()
            results = (await session.exec(select(SavedResult))).all()
            artifacts = (await session.exec(select(SavedArtifact).order_by(col(SavedArtifact.id)))).all()
    finally:
        await database.close()

    def of(work: Work, rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if getattr(row, "work_id") == work.id]  # noqa: B009 - no common base has it

    # A job's plan has the stages of every kind.
    attempts = sorted(attempts, key=lambda attempt: (FINE_TUNING_JOB.plan.index(attempt.stage), attempt.attempt))
    return {
        work.id: WorkHistory(
            work,
            of(work, attempts),
            of(work, events),
            of(work, checkpoints),
            of(work, artifacts),
            of(work, results),
        )
        for work in all_work
    }
