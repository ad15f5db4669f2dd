"""Takes deliveries and runs them, each in a task of its own. Any number of processes may do so.

A delivery belongs to the process that its row names as holder, as long as that process has a row with a beat. Others
delete the row of a process whose beat has stopped, measured with their own monotonic clock, and so free what it held. A
process that was only slow finds at its next write that it no longer holds the delivery.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from typing import Final

from sqlalchemy.exc import DBAPIError
from sqlmodel import col, delete, select, update

from chassis.bus.connection import heeding_cancellation
from chassis.server import gauges
from gateway.deliveries.delivery import DeliveryLoop, MakeSink, RetrySchedule
from gateway.sql.database import Database
from gateway.sql.database_errors import DatabaseUnavailable
from gateway.sql.tables import Deliverer as DelivererRow
from gateway.sql.tables import Delivery, Work

_log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.1
"""Least time between two looks, however many hints come."""
_LATE_SECONDS: Final = 4.0
"""A look that comes later than this says that this process was stopped or starved, and its clock proves nothing."""


class Deliverer:
    """The deliveries of one process."""

    def __init__(
        self,
        database: Database,
        make_sink: MakeSink,
        schedule: RetrySchedule,
        *,
        lease_seconds: float = 15.0,
        max_deliveries: int = 1000,
    ) -> None:
        self._database, self._make_sink, self._schedule = database, make_sink, schedule
        self._lease_seconds, self._max_deliveries = lease_seconds, max_deliveries
        self._id = secrets.token_hex(16)
        self._loops: dict[str, tuple[DeliveryLoop, asyncio.Task[None]]] = {}
        self._tails: dict[str, int] = {}
        self._seen: dict[str, tuple[int, float]] = {}
        """Other deliverer → (beat, when it was first seen)."""
        self._hint = asyncio.Event()

    def hint(self, work_id: str) -> None:
        """Tells that events of a job were accepted. Whatever gets lost here is found in SQL."""
        mine = [loop for loop, _ in self._loops.values() if loop.work_id == work_id]
        for loop in mine:
            loop.wake()
        if not mine:
            self._hint.set()

    async def run(self) -> None:
        """Until cancelled; then frees what it holds."""
        last = time.monotonic()
        try:
            while True:
                began = time.monotonic()
                if began - last > _LATE_SECONDS:
                    self._seen.clear()
                last = began
                self._hint.clear()
                try:
                    with heeding_cancellation():
                        await self._look()
                except (DBAPIError, DatabaseUnavailable) as error:
                    _log.warning("deliveries can't be looked for: %s", error)
                    self._seen.clear()
                await asyncio.sleep(_PAUSE_SECONDS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._hint.wait()
        finally:
            await self._stop()

    async def _look(self) -> None:
        for id_, (_, task) in list(self._loops.items()):
            if task.done():
                del self._loops[id_]
                task.result()
        await self._beat()
        await self._expire_others()
        await self._take()
        await self._wake_behind()
        gauges.DELIVERIES.set(len(self._loops))

    async def _beat(self) -> None:
        if not self._loops:
            # With nothing to hold there is nothing to prove, and an idle process leaves the disk alone.
            return
        async with self._database.write() as session:
            beat = update(DelivererRow).where(col(DelivererRow.id) == self._id)
            alive = (await session.exec(beat.values(beat=DelivererRow.beat + 1))).rowcount
        if not alive:
            _log.warning("other processes have taken the deliveries of this one, which was silent for too long")
            await self._cancel_all()

    async def _expire_others(self) -> None:
        async with self._database.read() as session:
            rows = (await session.exec(select(DelivererRow).where(DelivererRow.id != self._id))).all()
        moment, seen = time.monotonic(), {}
        for row in rows:
            beat, since = self._seen.get(row.id, (-1, moment))
            seen[row.id] = (row.beat, since if beat == row.beat else moment)
            if moment - seen[row.id][1] >= self._lease_seconds:
                async with self._database.write() as session:
                    dead = delete(DelivererRow).where(
                        col(DelivererRow.id) == row.id, col(DelivererRow.beat) == row.beat
                    )
                    if (await session.exec(dead)).rowcount:
                        _log.warning("the delivery process %s is silent; its deliveries are taken over", row.id)
        self._seen = seen

    async def _take(self) -> None:
        room = self._max_deliveries - len(self._loops)
        query = select(Delivery.id, Delivery.holder).where(
            col(Delivery.end_time).is_(None), col(Delivery.holder).not_in(select(DelivererRow.id))
        )
        async with self._database.read() as session:
            free = (await session.exec(query.order_by(Delivery.id).limit(room))).all()
        if not free:
            return
        taken: list[Delivery] = []
        async with self._database.write() as session:
            if await session.get(DelivererRow, self._id) is None:
                if self._loops:
                    return
                # An id never comes back after its end, so one that was seen without a row stays without.
                self._id = secrets.token_hex(16)
                session.add(DelivererRow(id=self._id))
                await session.flush()
            for id_, holder in free:
                take = update(Delivery).where(
                    col(Delivery.id) == id_, col(Delivery.holder) == holder, col(Delivery.end_time).is_(None)
                )
                if (await session.exec(take.values(holder=self._id))).rowcount:
                    taken.append((await session.exec(select(Delivery).where(Delivery.id == id_))).one())
        # A retry that was asked for frees a delivery whose loop waits here for its next try.
        waiting = [self._loops.pop(row.id)[1] for row in taken if row.id in self._loops]
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)
        for row in taken:
            self._start(row)

    def _start(self, row: Delivery) -> None:
        loop = DeliveryLoop(self._database, row, self._make_sink, self._schedule)
        task = asyncio.create_task(loop.run(), name=row.id)
        # A delivery that ends makes room for another.
        task.add_done_callback(lambda _: self._hint.set())
        self._loops[row.id] = (loop, task)

    async def _wake_behind(self) -> None:
        """Wakes the loops whose job has more events than at the look before: the broker may have lost the hint."""
        jobs = {loop.work_id for loop, _ in self._loops.values()}
        if not jobs:
            return
        async with self._database.read() as session:
            query = select(Work.id, Work.last_sequence).where(col(Work.id).in_(jobs))
            tails = dict((await session.exec(query)).all())
        for loop, _ in self._loops.values():
            if tails.get(loop.work_id) != self._tails.get(loop.work_id):
                loop.wake()
        self._tails = tails

    async def _cancel_all(self) -> None:
        tasks = [task for _, task in self._loops.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._loops.clear()

    async def _stop(self) -> None:
        held = bool(self._loops)
        await self._cancel_all()
        if not held:
            return
        try:
            async with self._database.write() as session:
                mine = update(Delivery).where(col(Delivery.holder) == self._id)
                await session.exec(mine.values(holder=""))
                await session.exec(delete(DelivererRow).where(col(DelivererRow.id) == self._id))
        except (DBAPIError, DatabaseUnavailable) as error:
            _log.warning("deliveries are not freed, and others take them when the lease has ended: %s", error)
