"""Decisions: each is one SQL transaction that locks the work's row first, and publishes after COMMIT.

An event gets its sequence inside the transaction. Publishing may fail: watchers find a lost tail in SQL, and READY
attempts are dispatched again.
"""

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias

from google.protobuf.message import Message
from sqlalchemy import Connection, Select, Table, Update, bindparam, inspect
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col, delete
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.events import event_of
from chassis.failpoints import failpoint
from finetuneflow.v1.event_pb2 import Event, Severity
from finetuneflow.v1.fine_tuning_job_pb2 import Progress, Stage
from gateway.sql.database import Database
from gateway.sql.tables import Attempt, Metric, Work, now
from gateway.watch.frames import Frame, frame_of, with_sequence
from gateway.work.kinds import FINE_TUNING_JOB, Kind, no_such

log = logging.getLogger(__name__)


GATEWAY_SOURCE = "gateway"
ELAPSED_SECONDS = "elapsed_seconds"
"""The series that keeps its points when steps are trained again: the time was spent."""

# Made once: to build a statement costs more than to run it.
_WORK, _ATTEMPTS = inspect(Work).local_table, inspect(Attempt).local_table
_LOCKED_WORK = _WORK.select().where(_WORK.c.id == bindparam("work_id")).with_for_update()
_OPEN_ATTEMPT = _ATTEMPTS.select().where(_ATTEMPTS.c.work_id == bindparam("work_id"), _ATTEMPTS.c.state != "ENDED")
_EVENT_COLUMNS = ("work_id", "sequence", "tenant", "kind", "severity", "event")
_POINT_COLUMNS = ("work_id", "name", "sequence", "tenant", "attempt", "step", "epoch", "value")


@cache
def _insertion(table: str, columns: tuple[str, ...], dialect: str) -> str:
    """SQL for rows as tuples. What SQLAlchemy does with every row of an insert of its own takes longer than SQLite."""
    marks = [f"${number}" if dialect == "postgresql" else "?" for number in range(1, len(columns) + 1)]
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(marks)})"  # noqa: S608 - names of ours


@cache
def _change(table: Table, columns: tuple[str, ...]) -> Update:
    keys = [column == bindparam(f"key_{column.name}") for column in table.primary_key]
    return table.update().where(*keys).values({name: bindparam(f"new_{name}") for name in columns})


_Loaded: TypeAlias = tuple[Work | Attempt, Mapping[str, object]]
"""A row as an object, and its values in SQL."""


def _load(connection: Connection, work_id: str) -> list[_Loaded]:
    """Locks the work and returns it with its open attempt; an empty list if there is no such work."""
    work = _one(connection, _LOCKED_WORK, Work, work_id)
    # A query of its own: on PostgreSQL one that joins would see the attempt as it was before the lock was waited for.
    return work and work + _one(connection, _OPEN_ATTEMPT, Attempt, work_id)


def _one(connection: Connection, query: Select[Any], table: type[Work | Attempt], work_id: str) -> list[_Loaded]:
    # Objects of no session: to load them through one takes twice as long.
    rows = (row._asdict() for row in connection.execute(query, {"work_id": work_id}))
    return [(table(**values), values) for values in rows]


def _write_changes(connection: Connection, row: Work | Attempt, loaded: Mapping[str, object]) -> None:
    # As a session would, in less than half the time: every report changes both rows.
    if changed := {name: value for name in loaded if (value := getattr(row, name)) != loaded[name]}:
        table = _WORK if isinstance(row, Work) else _ATTEMPTS
        values = {f"new_{name}": value for name, value in changed.items()}
        keys = {f"key_{column.name}": loaded[column.name] for column in table.primary_key}
        connection.execute(_change(table, tuple(changed)), values | keys)


@dataclass
class Decision:
    """Locked work, its open attempt, and what the decision adds."""

    connection: AsyncConnection
    session: AsyncSession
    """For what is rare: its first use costs a savepoint."""
    work: Work
    attempt: Attempt | None
    """The one attempt that is not ENDED."""
    frames: list[Frame] = field(default_factory=list)
    ready: Attempt | None = None
    """An attempt to dispatch after COMMIT."""
    discarded: list[str] = field(default_factory=list)
    """Paths in the artifact store, tenant in front, that nothing names any more after COMMIT."""
    _loaded: list[_Loaded] = field(default_factory=list)
    """The rows that may have to be updated, each with its values in SQL."""
    _events: list[tuple[object, ...]] = field(default_factory=list)
    _points: list[tuple[object, ...]] = field(default_factory=list)
    _retrained: tuple[int, int] | None = None
    """(attempt, step): what older attempts measured from there on is no longer part of the run."""
    _progress: Progress | None = None

    def __post_init__(self) -> None:
        self._sequence = self.work.last_sequence
        self._work_id, self._tenant = self.work.id, self.work.tenant

    @property
    def progress(self) -> Progress:
        """The work's progress, to be changed in place."""
        if self._progress is None:
            self._progress = Progress.FromString(self.work.progress)
        return self._progress

    def append(self, payload: Message, severity: Severity | None = None) -> None:
        """An event of the gateway's own."""
        event = event_of(payload, severity)
        event.job_id, event.attempt = self.work.id, self.work.attempt
        event.stage = Stage.Value(self.work.stage)  # type: ignore[assignment]
        event.source = GATEWAY_SOURCE
        self.accept(event.SerializeToString(), event)
        self.update_row()

    def accept(self, event: bytes, parsed: Event) -> int:
        """Gives a serialised event its sequence and returns it."""
        self._sequence += 1
        event = with_sequence(event, self._sequence)
        frame = frame_of(event, parsed, self._sequence)
        self.frames.append(frame)
        self._events.append((self._work_id, frame.sequence, self._tenant, frame.kind, frame.severity, event))
        return frame.sequence

    def add_points(
        self, event: Event, sequence: int, step: int, epoch: float, values: Iterable[tuple[str, float]]
    ) -> None:
        """Adds points to curves."""
        work_id, tenant, attempt = self._work_id, self._tenant, event.attempt
        for name, value in values:
            number = None if math.isnan(value) else value
            self._points.append((work_id, name, sequence, tenant, attempt, step, epoch, number))
        if attempt > 1 and (self._retrained is None or step < self._retrained[1]):
            self._retrained = attempt, step

    def update_row(self) -> None:
        """Writes the newest sequence and progress to the work's row."""
        if self._sequence != self.work.last_sequence:
            self.work.last_sequence = self._sequence
            self.work.update_time = now()
        if self._progress is not None:
            self.work.progress = self._progress.SerializeToString()

    async def flush(self) -> None:
        """Sends every change to the database, in one statement per table where there are many rows."""
        self.update_row()
        await self.connection.run_sync(self._flush)
        if self.ready is not None:
            # Only now: inserted before the older attempt is ENDED, the unique index would refuse it.
            self.session.add(self.ready)
            await self.session.flush()

    def _flush(self, connection: Connection) -> None:
        for row, loaded in self._loaded:
            _write_changes(connection, row, loaded)
        dialect = connection.dialect.name
        if self._events:
            connection.exec_driver_sql(_insertion("events", _EVENT_COLUMNS, dialect), self._events)
        if self._retrained is not None:
            attempt, step = self._retrained
            older = delete(Metric).where(
                col(Metric.work_id) == self._work_id,
                col(Metric.step) >= step,
                col(Metric.attempt) < attempt,
                col(Metric.name) != ELAPSED_SECONDS,
            )
            connection.execute(older)
        if self._points:
            connection.exec_driver_sql(_insertion("metrics", _POINT_COLUMNS, dialect), self._points)


class Ledger:
    """Makes decisions and announces them.

    `publish` sends accepted frames to watchers, `dispatch` offers a READY attempt to workers, `discard` deletes from
    the artifact store; they are called after COMMIT, report their own failures and never raise.
    """

    def __init__(
        self,
        database: Database,
        publish: Callable[[str, list[Frame]], Awaitable[None]],
        dispatch: Callable[[Attempt], Awaitable[None]],
        discard: Callable[[list[str]], Awaitable[None]],
    ) -> None:
        self.database = database
        self._publish = publish
        self._dispatch = dispatch
        self._discard = discard

    @asynccontextmanager
    async def decide(
        self, work_id: str, tenant: str | None = None, kind: Kind | None = None
    ) -> AsyncIterator[Decision]:
        """Locks the work for the block. NotFound where there is none, or none of that tenant and kind."""
        async with self.database.change() as (connection, session):
            loaded = await connection.run_sync(_load, work_id)
            work = loaded[0][0] if loaded else None
            if not isinstance(work, Work) or tenant not in (None, work.tenant) or (kind and kind.name != work.kind):
                raise no_such(kind or FINE_TUNING_JOB, work_id)
            attempt = next((row for row, _ in loaded if isinstance(row, Attempt)), None)
            decision = Decision(connection, session, work, attempt, _loaded=loaded)
            yield decision
            await decision.flush()
            failpoint("decision.flushed")
        failpoint("decision.committed")
        await self._announce(decision)

    @asynccontextmanager
    async def create(self, work: Work) -> AsyncIterator[Decision]:
        """Inserts the work; the block is the first decision about it."""
        async with self.database.change() as (connection, session):
            session.add(work)
            await session.flush()
            # From here on the decision writes it, as it does one that it has loaded.
            session.expunge(work)
            decision = Decision(connection, session, work, None, _loaded=[(work, work.model_dump())])
            yield decision
            await decision.flush()
            failpoint("creation.flushed")
        failpoint("creation.committed")
        await self._announce(decision)

    async def _announce(self, decision: Decision) -> None:
        if decision.ready is not None:
            await self._dispatch(decision.ready)
            failpoint("decision.dispatched")
        if decision.frames:
            await self._publish(decision.work.id, decision.frames)
            failpoint("decision.published")
        if decision.discarded:
            await self._discard(decision.discarded)
