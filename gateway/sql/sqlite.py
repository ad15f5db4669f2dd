"""SQLite connections that use their thread only for calls that may take long.

The driver, aiosqlite, sends every call of a connection to the connection's own thread, four or more for one statement;
each costs more than the statement. Here a call goes to the thread only if it may wait for the disk or for another
process, or may take long; every other call runs directly, between two awaits of the event loop.

This overrides private parts of aiosqlite.Connection. pyproject.toml therefore allows one minor version of it, and
tests/gateway/test_driver_versions.py fails with any other until it has been checked.
"""

import sqlite3
from collections.abc import Callable
from typing import Any

import aiosqlite
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

BUSY_SECONDS = 10.0
"""Seconds for which another process (a backup, a shell) may hold SQLite's write lock before a write here fails.
Callers wait for 30 s: they must learn the reason before."""
_SMALL_BATCH = 400
"""Rows that are inserted in about 2 ms."""
_BEGIN = "BEGIN IMMEDIATE"


class _Connection(aiosqlite.Connection):
    """A connection that runs short calls directly.

    `waits(name, arguments)` tells whether a call of that method of sqlite3's cursor or connection goes to the thread.
    """

    def __init__(
        self, connector: Callable[[], sqlite3.Connection], waits: Callable[[str, Any], bool], busy_seconds: float
    ) -> None:
        super().__init__(connector, iter_chunk_size=64)
        self._busy_seconds = busy_seconds
        self._thread.daemon = True
        self._waits = waits
        self._sent = 0
        self._done = 0
        """Number of calls that the thread has completed; only the thread writes it."""

    async def _execute(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        raw = self._connection
        # A caller that was cancelled has left its call in the thread: what follows stands in line behind it.
        idle = self._sent == self._done
        if raw is not None and self._running and idle and not self._waits(fn.__name__, args):
            return fn(*args, **kwargs)
        if raw is not None and idle and args and args[0] == _BEGIN and _try_begin(raw, self._busy_seconds):
            return None

        def run() -> Any:
            try:
                return fn(*args, **kwargs)
            finally:
                self._done += 1

        self._sent += 1
        return await super()._execute(run)  # type: ignore[no-untyped-call]


def _try_begin(raw: sqlite3.Connection, busy_seconds: float) -> bool:
    """Takes the write lock if no other process holds it; returns False if it would have to wait."""
    raw.execute("PRAGMA busy_timeout=0")
    try:
        raw.execute(_BEGIN)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return False
    finally:
        raw.execute(f"PRAGMA busy_timeout={round(busy_seconds * 1000)}")
    return True


def _reader_may_block(name: str, args: Any) -> bool:
    # A query may read much, in its first step and in the later ones.
    return name not in ("cursor", "close", "rollback") and not (name == "execute" and args[0].startswith("BEGIN"))


def _writer_may_block(name: str, args: Any) -> bool:
    match name:
        case "execute":
            sql: str = args[0]
            # BEGIN IMMEDIATE waits for other processes, DELETE may find a million rows.
            return sql.startswith(("BEGIN", "DELETE", "CREATE", "DROP", "ALTER", "PRAGMA"))
        case "executemany":
            return len(args[1]) > _SMALL_BATCH
        case "cursor" | "close" | "rollback" | "fetchall":
            return False
    return True


def sqlite_engine(
    url: URL, *, writes: bool, busy_seconds: float = BUSY_SECONDS, foreign_keys: bool = True
) -> AsyncEngine:
    """Creates an engine with journal mode WAL and synchronous=FULL.

    A transaction of the engine that writes begins with BEGIN IMMEDIATE: it takes the write lock first, so no later
    statement of it fails with "database is locked". After `busy_seconds` of waiting for that lock it fails.
    `foreign_keys=False` is for migrations.
    """
    begin_statement = _BEGIN if writes else "BEGIN DEFERRED"

    def connection(path: str, **kwargs: Any) -> _Connection:
        def connect() -> sqlite3.Connection:
            # The driver's own BEGIN is DEFERRED and comes too late to take the write lock; ours is explicit.
            raw: sqlite3.Connection = sqlite3.connect(path, isolation_level=None, timeout=busy_seconds, **kwargs)
            for pragma in ("journal_mode=WAL", "synchronous=FULL", f"foreign_keys={int(foreign_keys)}"):
                raw.execute(f"PRAGMA {pragma}")
            return raw

        return _Connection(connect, _writer_may_block if writes else _reader_may_block, busy_seconds)

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin_statement)

    engine = create_async_engine(url, connect_args={"async_creator_fn": connection})
    event.listen(engine.sync_engine, "begin", begin)
    return engine
