"""The final content of SQL that the checker reads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlmodel import SQLModel, col, select

from finetuneflow.v1.event_pb2 import Event
from gateway.sql.database import Database
from gateway.sql.tables import Attempt, SavedArtifact, SavedCheckpoint, Work, WorkEvent
from gateway.work.kinds import FINE_TUNING_JOB

Row = TypeVar("Row", bound=SQLModel)


@dataclass
class JobHistory:
    """The rows of one job in SQL."""

    job: Work
    attempts: Sequence[Attempt]
    """Attempts ordered by stage and number; creation times follow a clock that is set during the run."""
    rows: Sequence[WorkEvent]
    """Events ordered by sequence."""
    checkpoints: Sequence[SavedCheckpoint]
    artifacts: Sequence[SavedArtifact]

    def events(self) -> list[Event]:
        return [Event.FromString(row.event) for row in self.rows]


def read_histories(database_url: str) -> dict[str, JobHistory]:
    """Every job by id."""
    return asyncio.run(_read(database_url))


async def _read(url: str) -> dict[str, JobHistory]:
    database = await Database.open(url)
    try:
        async with database.read() as session:
            jobs = (await session.exec(select(Work))).all()
            attempts = (await session.exec(select(Attempt))).all()
            events = (await session.exec(select(WorkEvent).order_by(col(WorkEvent.sequence)))).all()
            checkpoints = (await session.exec(select(SavedCheckpoint).order_by(col(SavedCheckpoint.sequence)))).all()
            artifacts = (await session.exec(select(SavedArtifact).order_by(col(SavedArtifact.id)))).all()
    finally:
        await database.close()

    def of(job: Work, rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if getattr(row, "work_id") == job.id]  # noqa: B009 - no common base has it

    attempts = sorted(attempts, key=lambda attempt: (FINE_TUNING_JOB.plan.index(attempt.stage), attempt.attempt))
    return {
        job.id: JobHistory(job, of(job, attempts), of(job, events), of(job, checkpoints), of(job, artifacts))
        for job in jobs
    }
