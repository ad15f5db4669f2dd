"""SQL behind two verbs: `read` and `write`.

SQLite: WAL, synchronous=FULL, every write is BEGIN IMMEDIATE behind one lock in this process, so writers queue here
instead of failing with "database is locked". PostgreSQL: READ COMMITTED; decisions lock their job row.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import event, make_url
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import InvalidArgument

# How long another process (a backup, a shell) may hold SQLite's write lock before a write here fails.
_SQLITE_BUSY_SECONDS = 30
# character_not_in_repertoire, untranslatable_character
_UNSTORABLE_TEXT = frozenset({"22021", "22P05"})


class Database:
    """Opened with `await Database.open(url)`; `close` returns the connections."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self._writer: asyncio.Lock | nullcontext[None] = asyncio.Lock() if self.is_sqlite else nullcontext()
        self._reads = self._engine("DEFERRED")
        self._writes = self._engine("IMMEDIATE") if self.is_sqlite else self._reads

    @classmethod
    async def open(cls, url: str) -> "Database":
        """Brings the schema up to date, then connects. `url`: `sqlite:///path` or `postgresql://…`."""
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            if not parsed.database:
                raise ValueError("an SQLite database needs a file: sqlite:///path/to/gateway.sqlite")
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        driver = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}[parsed.get_backend_name()]
        database = cls(parsed.set(drivername=driver))
        await database._migrate()
        return database

    def _engine(self, sqlite_begin: str) -> AsyncEngine:
        if not self.is_sqlite:
            return create_async_engine(self.url, pool_size=10, max_overflow=10, pool_pre_ping=True)
        engine = create_async_engine(self.url, connect_args={"timeout": _SQLITE_BUSY_SECONDS})

        def connect(connection: Any, _: object) -> None:
            # The driver's own BEGIN is DEFERRED and comes too late to take the write lock; ours is explicit.
            connection.isolation_level = None
            cursor = connection.cursor()
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.close()

        def begin(connection: Connection) -> None:
            connection.exec_driver_sql(f"BEGIN {sqlite_begin}")

        event.listen(engine.sync_engine, "connect", connect)
        event.listen(engine.sync_engine, "begin", begin)
        return engine

    async def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        async with self._writes.connect() as connection:

            def upgrade(sync: Connection) -> None:
                config.attributes["connection"] = sync
                command.upgrade(config, "head")

            await connection.run_sync(upgrade)
            await connection.commit()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """One consistent look; nothing is written."""
        with _caller_faults():
            async with AsyncSession(self._reads, expire_on_commit=False) as session:
                yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        with _caller_faults():
            async with self._writer, AsyncSession(self._writes, expire_on_commit=False) as session, session.begin():
                yield session

    async def close(self) -> None:
        await self._reads.dispose()
        await self._writes.dispose()


@contextmanager
def _caller_faults() -> Iterator[None]:
    """PostgreSQL stores no NUL characters; SQLite does. Ids and names with one come from callers."""
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", "") in _UNSTORABLE_TEXT:
            raise InvalidArgument("INVALID_TEXT", "a text of the request holds a NUL character") from error
        raise
