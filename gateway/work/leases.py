"""Expires claims of silent workers. Each gateway uses its own monotonic clock; expiry is a compare-and-set."""

import asyncio
import logging
import time
from collections.abc import Sequence

from sqlalchemy.exc import DBAPIError
from sqlmodel import select

from chassis.bus.event_bus import Bus
from gateway.sql.database import Database
from gateway.sql.database_errors import DatabaseUnavailable
from gateway.sql.tables import Attempt, GatewayTick
from gateway.work.worker_requests import WorkerRequests

log = logging.getLogger(__name__)

_TICK_SECONDS = 1.0
# A tick that comes later than this says that this process was stopped or starved, and its clock proves nothing.
_LATE_SECONDS = 2.0
_ROW = 1


class LeaseWatch:
    """Expires a claim whose beat has not changed for `lease_seconds` of healthy ticks."""

    def __init__(self, database: Database, bus: Bus, requests: WorkerRequests, lease_seconds: float) -> None:
        self._database = database
        self._bus = bus
        self._requests = requests
        self._lease_seconds = lease_seconds
        self._seen: dict[tuple[str, str], tuple[int, float]] = {}
        """(work_id, claim_id) → (beat, when it was first seen)."""

    async def run(self) -> None:
        """Until cancelled."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            began = time.monotonic()
            late = began - last > _LATE_SECONDS
            last = began
            try:
                claims = await self._claims()
                # With nothing to watch, nothing has to be proven, and an idle gateway leaves the disk alone.
                if late or (claims and not await self._healthy(began)):
                    self._seen.clear()
                else:
                    await self._observe(claims, began)
            except (DBAPIError, DatabaseUnavailable) as error:
                log.warning("claims can't be watched: %s", error)
                self._seen.clear()

    async def _claims(self) -> Sequence[tuple[str, str | None, int]]:
        """(work_id, claim_id, beat)"""
        async with self._database.read() as session:
            query = select(Attempt.work_id, Attempt.claim_id, Attempt.beat)
            return (await session.exec(query.where(Attempt.state == "CLAIMED"))).all()

    async def _healthy(self, began: float) -> bool:
        """On time, NATS answered, a SQL write went through: else a silent worker may be our own deafness."""
        if not await self._bus.alive(timeout=_LATE_SECONDS):
            return False
        async with self._database.write() as session:
            tick = await session.get(GatewayTick, _ROW)
            tick = tick or GatewayTick(id=_ROW, tick=0)
            tick.tick += 1
            session.add(tick)
        return time.monotonic() - began < _LATE_SECONDS

    async def _observe(self, claims: Sequence[tuple[str, str | None, int]], tick: float) -> None:
        seen: dict[tuple[str, str], tuple[int, float]] = {}
        for work_id, claim_id, beat in claims:
            key = (work_id, claim_id or "")
            before, since = self._seen.get(key, (-1, tick))
            if before != beat:
                since = tick
            seen[key] = (beat, since)
            if tick - since >= self._lease_seconds:
                log.warning("the claim of %s expires", work_id)
                await self._requests.expire(*key, beat)
        self._seen = seen
