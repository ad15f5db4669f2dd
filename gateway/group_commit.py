"""Writers of one SQLite file take turns in one transaction and share its COMMIT, the one part that waits for the disk.

Each turn stands in a savepoint: one that fails takes back what it did and nothing else. Nobody hears of success before
the COMMIT, and one that fails is everybody's failure.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis import gauges

# Who came first waits for who came last. A COMMIT costs a few decisions; more of them in one gain little.
_MAX_TURNS = 32
_MAX_SECONDS = 0.01


class _Turn:
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.granted: asyncio.Future[AsyncConnection] = loop.create_future()
        self.over: asyncio.Future[bool] = loop.create_future()
        """True when it has something to be committed."""
        self.committed: asyncio.Future[None] = loop.create_future()


class GroupCommit:
    """The one writer of a process. `engine` begins with BEGIN IMMEDIATE."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._waiting: deque[_Turn] = deque()
        self._driver: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[AsyncSession]:
        """A session of one's own in the shared transaction; left only after the COMMIT. When the block raises, what it
        did is rolled back. Raises DBAPIError when the COMMIT fails, ConnectionError when another turn broke the
        transaction."""
        turn = _Turn()
        self._waiting.append(turn)
        if self._driver is None:
            self._driver = asyncio.create_task(self._drive(), name="group-commit")
        kept = False
        try:
            connection = await turn.granted
            session = AsyncSession(connection, expire_on_commit=False, join_transaction_mode="create_savepoint")
            async with session, session.begin():
                yield session
            kept = True
        finally:
            turn.over.set_result(kept)
        await turn.committed

    async def close(self) -> None:
        """Once the turns that wait are over."""
        if self._driver:
            await asyncio.wait({self._driver})

    async def _drive(self) -> None:
        while self._waiting:
            kept: list[_Turn] = []
            try:
                async with self._engine.connect() as connection:
                    try:
                        await connection.begin()
                    except DBAPIError:
                        # Whoever waits here has waited for the same lock.
                        kept = self._take_waiting()
                        raise
                    await self._run_group(connection, kept)
            except Exception as error:  # noqa: BLE001 - whatever it is, the callers are told; else they wait for ever
                for turn in kept:
                    _fail(turn, error)
        self._driver = None

    async def _run_group(self, connection: AsyncConnection, kept: list[_Turn]) -> None:
        began = time.monotonic()
        raw = (await connection.get_raw_connection()).driver_connection
        turns = 0
        while self._waiting and turns < _MAX_TURNS and time.monotonic() - began < _MAX_SECONDS:
            turn = self._waiting.popleft()
            if turn.granted.cancelled():
                continue
            turns += 1
            turn.granted.set_result(connection)
            if await turn.over:
                kept.append(turn)
            if connection.invalidated or not raw.in_transaction:  # type: ignore[union-attr]
                # Out of space, or cancelled in the middle of a statement: SQLite has rolled back everything.
                raise ConnectionError("an error in another decision rolled back the transaction")
        before = time.monotonic()
        await connection.commit()
        gauges.COMMIT_SECONDS.observe(time.monotonic() - before)
        gauges.COMMIT_DECISIONS.observe(len(kept))
        for turn in kept:
            if not turn.committed.done():
                turn.committed.set_result(None)

    def _take_waiting(self) -> list[_Turn]:
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting


def _fail(turn: _Turn, error: Exception) -> None:
    for future in (turn.granted, turn.committed):
        if not future.done():
            future.set_exception(error)
            # A caller that was cancelled asks no more.
            future.exception()
            return
