"""Decisions that share a COMMIT are independent: one that fails affects no other, and none returns before it."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlmodel import select

from gateway.sql.database import Database
from gateway.sql.database_errors import DatabaseUnavailable
from gateway.sql.tables import Work
from tests.gateway.jobs import a_job


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[Database]:
    """A database in which all who wait share one COMMIT, however slow the machine is."""
    database = await Database.open(f"sqlite:///{tmp_path / 'gateway.sqlite'}", group_seconds=60.0)
    yield database
    await database.close()


async def stored(database: Database) -> set[str]:
    async with database.read() as session:
        return set((await session.exec(select(Work.id))).all())


async def insert(database: Database, job: Work, error: Exception | None = None) -> str:
    async with database.write() as session:
        session.add(job)
        await session.flush()
        if error:
            raise error
        return job.id


async def test_failed_decision_rolls_back_only_itself(shared: Database) -> None:
    attempts = [insert(shared, a_job(), RuntimeError("no") if number % 3 == 0 else None) for number in range(30)]
    results = await asyncio.gather(*attempts, return_exceptions=True)
    kept = {result for result in results if isinstance(result, str)}
    assert len(kept) == 20
    assert await stored(shared) == kept


async def test_original_row_is_readable_after_duplicate_error(shared: Database) -> None:
    """A request that lost against another with the same request_id returns what that one created."""

    async def create() -> int:
        with contextlib.suppress(IntegrityError):
            await insert(shared, a_job(request_id="once"))
        return len(await stored(shared))

    assert await asyncio.gather(*(create() for _ in range(8))) == [1] * 8


async def test_decisions_return_only_after_commit(shared: Database) -> None:
    """A response must survive a power loss directly after it."""
    with contextlib.closing(sqlite3.connect(shared.url.database or "")) as other:
        seen = []

        async def create() -> None:
            job_id = await insert(shared, a_job())
            seen.append(other.execute("SELECT count(*) FROM work WHERE id = ?", (job_id,)).fetchone()[0])

        await asyncio.gather(*(create() for _ in range(40)))
    assert seen == [1] * 40


async def test_failed_commit_fails_all_decisions_of_its_group(shared: Database) -> None:
    """SQLite checks deferred foreign keys at COMMIT: if one decision violates them, no other may report success."""

    async def breaking() -> None:
        async with shared.write() as session:
            connection = await session.connection()
            await connection.execute(text("PRAGMA defer_foreign_keys = ON"))
            await connection.execute(
                text(
                    "INSERT INTO results (id, tenant, kind, job_id, work_id, create_time) "
                    "VALUES ('ex', 'default', 'export', 'ftjob_none', 'ftjob_none', 0)"
                )
            )

    results = await asyncio.gather(insert(shared, a_job()), breaking(), insert(shared, a_job()), return_exceptions=True)
    assert all(isinstance(result, DBAPIError) for result in results), results
    assert await stored(shared) == set()
    after = await insert(shared, a_job())
    assert await stored(shared) == {after}


async def test_cancelled_decision_is_rolled_back_and_does_not_block_others(shared: Database) -> None:
    """A client disconnects during its request."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def hanging() -> None:
        async with shared.write() as session:
            session.add(a_job())
            await session.flush()
            entered.set()
            await leave.wait()

    first = asyncio.create_task(hanging())
    await entered.wait()
    waiting = asyncio.create_task(insert(shared, a_job()))
    given_up = asyncio.create_task(insert(shared, a_job()))
    await asyncio.sleep(0)
    given_up.cancel()
    first.cancel()
    async with asyncio.timeout(10):
        job_id = await waiting
    assert await stored(shared) == {job_id}


async def test_writers_blocked_by_another_process_get_database_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sqlite"
    database = await Database.open(f"sqlite:///{path}", busy_seconds=0, group_seconds=60.0)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        results = await asyncio.gather(*(insert(database, a_job()) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(result, DatabaseUnavailable) for result in results), results
        other.execute("ROLLBACK")
    assert await insert(database, a_job()) in await stored(database)
    await database.close()
