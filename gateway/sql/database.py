"""SQL behind two verbs: `read` and `write`.

SQLite: one writer in this process, in which those who write take turns and share a COMMIT. PostgreSQL: READ COMMITTED;
decisions lock their job row, and the server itself flushes COMMITs that come together in one go.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import make_url
from sqlalchemy.engine import URL, Connection
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.orm.session import JoinTransactionMode
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.sql.database_errors import translate_errors
from gateway.sql.group_commit import MAX_SECONDS, GroupCommit
from gateway.sql.sqlite import BUSY_SECONDS, sqlite_engine


class Database:
    """Opened with `await Database.open(url)`; `close` returns the connections."""

    def __init__(self, url: URL, busy_seconds: float = BUSY_SECONDS, group_seconds: float = MAX_SECONDS) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self._group: GroupCommit | None = None
        if self.is_sqlite:
            self._reads = sqlite_engine(url, writes=False, busy_seconds=busy_seconds)
            self._writes = sqlite_engine(url, writes=True, busy_seconds=busy_seconds)
            self._group = GroupCommit(self._writes, group_seconds)
        else:
            self._writes = create_async_engine(url, pool_size=10, max_overflow=10, pool_pre_ping=True)
            # The default sees what is committed between two queries of one look.
            self._reads = self._writes.execution_options(isolation_level="REPEATABLE READ")

    @classmethod
    async def open(
        cls, url: str | URL, *, busy_seconds: float = BUSY_SECONDS, group_seconds: float = MAX_SECONDS
    ) -> "Database":
        """Connects and migrates the schema to the newest version. `url`: `sqlite:///path` or `postgresql://…`.

        Of SQLite only: a write fails after `busy_seconds` of waiting for another process, and writers share one COMMIT
        for at most `group_seconds`.
        """
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            if not parsed.database:
                raise ValueError("an SQLite database needs a file: sqlite:///path/to/gateway.sqlite")
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        driver = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}.get(parsed.get_backend_name())
        if driver is None:
            raise ValueError(f"{parsed.get_backend_name()} is not supported: use sqlite:///path or postgresql://…")
        database = cls(parsed.set(drivername=driver), busy_seconds, group_seconds)
        await database._migrate()
        return database

    async def _migrate(self) -> None:
        config = Config()
        # Alembic's options are templates, in which a percent sign begins a name.
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        # SQLite changes a constraint by rebuilding its table: rows that name the table's rows must not mind meanwhile.
        engine = sqlite_engine(self.url, writes=True, foreign_keys=False) if self.is_sqlite else self._writes

        def upgrade(sync: Connection) -> None:
            config.attributes["connection"] = sync
            before = MigrationContext.configure(sync).get_current_revision()
            command.upgrade(config, "head")
            # Foreign keys are checked only after a migration: the check reads every row.
            migrated = MigrationContext.configure(sync).get_current_revision() != before
            if self.is_sqlite and migrated and (orphans := sync.exec_driver_sql("PRAGMA foreign_key_check").all()):
                raise RuntimeError(f"the migration would leave rows without what they name: {orphans[:5]}")

        # One transaction: a migration that fails leaves the database as it was.
        try:
            async with engine.begin() as connection:
                await connection.run_sync(upgrade)
        finally:
            if self.is_sqlite:
                await engine.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """One consistent look; nothing is written."""
        with translate_errors():
            async with AsyncSession(self._reads, expire_on_commit=False) as session:
                yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        async with self.change() as (_, session):
            yield session

    @asynccontextmanager
    async def change(self) -> AsyncIterator[tuple[AsyncConnection, AsyncSession]]:
        """The same, for statements to the connection beside the session, which costs nothing until it is used."""
        # Others have their part in SQLite's transaction: a session may only roll back what is its own.
        mode: JoinTransactionMode = "create_savepoint" if self._group else "rollback_only"
        with translate_errors():
            async with self._group.turn() if self._group else self._writes.begin() as connection:
                session = AsyncSession(connection, expire_on_commit=False, join_transaction_mode=mode)
                try:
                    yield connection, session
                    await session.commit()
                finally:
                    if session.in_transaction():
                        await session.close()

    async def close(self) -> None:
        if self._group:
            await self._group.close()
        await self._reads.dispose()
        await self._writes.dispose()
