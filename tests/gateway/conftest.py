"""Fixtures: the gateway's parts on a real SQLite and a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.bus.event_bus import Bus
from gateway.access.callers import ANYBODY, current
from gateway.sql.database import Database
from gateway.sql.tables import Attempt
from gateway.watch.frames import Frame
from gateway.work.ledger import Ledger
from gateway.work.worker_requests import WorkerRequests
from tests.fakes.planning import NoTrainers
from tests.servers.nats import NatsServer
from tests.servers.postgres import PostgresServer, binaries


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    if binaries() is None:
        pytest.skip("PostgreSQL's server is not installed")
    with PostgresServer() as server:
        yield server


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    """A connection to a running server that has our streams."""
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "test")
    await bus.ensure_streams()
    yield bus
    await bus.close()


class WatchedDatabase(Database):
    """A database that tells when this process has committed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.committed = asyncio.Event()
        """Set after each commit."""

    @asynccontextmanager
    async def change(self) -> AsyncIterator[tuple[AsyncConnection, AsyncSession]]:
        async with super().change() as both:
            yield both
        self.committed.set()


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """An empty database with the schema of the migrations."""
    if request.param == "sqlite":
        database = await WatchedDatabase.open(f"sqlite:///{tmp_path / 'gateway.sqlite'}")
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        database = await WatchedDatabase.open(server.url)
        await empty(database)
    yield database
    await database.close()


async def empty(database: Database) -> None:
    """Deletes everything but what a migration inserts."""
    async with database.write() as session:
        for table in reversed(SQLModel.metadata.sorted_tables):
            if table.name == "audit":
                await session.exec(text("TRUNCATE audit"))
            elif table.name == "tenants":
                await session.exec(table.delete().where(table.c.name != "default"))
                unset = {column.name: None for column in table.c if column.name.startswith("max_")}
                await session.exec(table.update().values(unset))
            else:
                await session.exec(table.delete())


@pytest.fixture(autouse=True)
def caller() -> Iterator[None]:
    """The caller of servicers that a test calls without a server: an operator of the default tenant."""
    token = current.set(ANYBODY)
    yield
    current.reset(token)


class Recorder:
    """Records the announcements of a ledger to watchers and workers."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.offered: list[Attempt] = []
        self.discarded: list[str] = []

    async def publish(self, job_id: str, frames: list[Frame]) -> None:
        self.frames.extend(frames)

    async def discard(self, paths: list[str]) -> None:
        self.discarded.extend(paths)

    async def offer(self, attempt: Attempt) -> None:
        self.offered.append(attempt)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def ledger(database: Database, recorder: Recorder) -> Ledger:
    return Ledger(database, recorder.publish, recorder.offer, recorder.discard)


@pytest.fixture
def acceptance(ledger: Ledger) -> WorkerRequests:
    return WorkerRequests(ledger, NoTrainers())
