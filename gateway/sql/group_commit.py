"""Writers of one SQLite file take turns in one transaction and share its COMMIT, the one part that waits for the disk.

Each turn stands in a savepoint: one that fails takes back what it did and nothing else. Nobody hears of success before
the COMMIT, and one that fails is everybody's failure.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from chassis.server import gauges

# Who came first waits for who came last. A COMMIT costs a few decisions; more of them in one gain little.
_MAX_TURNS = 32
MAX_SECONDS = 0.01


class _Turn:
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.granted: asyncio.Future[AsyncConnection] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()
        self.committed: asyncio.Future[None] = loop.create_future()


class GroupCommit:
    """The one writer of a process. `engine` begins with BEGIN IMMEDIATE; a group takes turns for `max_seconds`."""

    def __init__(self, engine: AsyncEngine, max_seconds: float = MAX_SECONDS) -> None:
        self._engine = engine
        self._max_seconds = max_seconds
        self._waiting: deque[_Turn] = deque()
        self._driver: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[AsyncConnection]:
        """The connection of the shared transaction, alone; left only after the COMMIT. When the block raises, what it
        did is rolled back. Raises DBAPIError when the COMMIT fails, ConnectionError when another turn broke the
        transaction."""
        turn = _Turn()
        self._waiting.append(turn)
        if self._driver is None:
            self._driver = asyncio.create_task(self._run_groups(), name="group-commit")
        try:
            connection = await turn.granted
        except BaseException:
            turn.over.set_result(None)
            raise
        try:
            async with _savepoint(connection):
                yield connection
        except Exception:
            turn.over.set_result(None)
            # What it stumbled over may be what another turn is about to commit: who looks for it now must find it.
            await turn.committed
            raise
        except BaseException:
            turn.over.set_result(None)
            raise
        turn.over.set_result(None)
        await turn.committed

    async def close(self) -> None:
        """Once the turns that wait are over."""
        if self._driver:
            await asyncio.wait({self._driver})

    async def _run_groups(self) -> None:
        while self._waiting:
            turns: list[_Turn] = []
            try:
                async with self._engine.connect() as connection:
                    try:
                        await connection.begin()
                        await self._run_group(connection, turns)
                    except BaseException:
                        # A COMMIT that failed leaves its transaction open, and the pool would hand it out.
                        await connection.invalidate()
                        raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the callers are told; else they wait for ever
                # Without any turn there was no transaction: whoever waits has waited for the same lock.
                for turn in turns or self._take_waiting():
                    _fail(turn, error)
        self._driver = None

    async def _run_group(self, connection: AsyncConnection, turns: list[_Turn]) -> None:
        began = time.monotonic()
        raw = (await connection.get_raw_connection()).driver_connection
        while self._waiting and len(turns) < _MAX_TURNS and time.monotonic() - began < self._max_seconds:
            turn = self._waiting.popleft()
            if turn.granted.cancelled():
                continue
            turns.append(turn)
            turn.granted.set_result(connection)
            await turn.over
            if connection.invalidated or not raw.in_transaction:  # type: ignore[union-attr]
                # Out of space, or cancelled in the middle of a statement: SQLite has rolled back everything.
                raise ConnectionError("an error in another decision rolled back the transaction")
        before = time.monotonic()
        await connection.commit()
        gauges.COMMIT_SECONDS.observe(time.monotonic() - before)
        gauges.COMMIT_DECISIONS.observe(len(turns))
        for turn in turns:
            if not turn.committed.done():
                turn.committed.set_result(None)

    def _take_waiting(self) -> list[_Turn]:
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting


@asynccontextmanager
async def _savepoint(connection: AsyncConnection) -> AsyncIterator[None]:
    # By the driver: SQLAlchemy compiles its own anew for each, which takes longer than to run it.
    driver: Any = (await connection.get_raw_connection()).driver_connection
    await driver.execute("SAVEPOINT turn")
    try:
        yield
        await driver.execute("RELEASE turn")
    except BaseException:
        try:
            if driver.in_transaction:
                await driver.execute("ROLLBACK TO turn")
                await driver.execute("RELEASE turn")
        except BaseException:
            # What is left of this turn must not be committed with the others.
            await connection.invalidate()
            raise
        raise


def _fail(turn: _Turn, error: Exception) -> None:
    for future in (turn.granted, turn.committed):
        if not future.done():
            future.set_exception(error)
            # A caller that was cancelled asks no more.
            future.exception()
            return
