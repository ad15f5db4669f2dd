"""Shares a number of slots fairly among tenants: a tenant with many queries delays its own, not those of others."""

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator

from chassis.errors import ResourceExhausted


class FairSlots:
    """Grants slots to the waiting tenant that holds the fewest, in turn among equals."""

    def __init__(self, num_slots: int, max_waiting: int) -> None:
        """`max_waiting` is the maximum number of a tenant's queries that wait."""
        self._free, self._max_waiting = num_slots, max_waiting
        self._held: collections.Counter[str] = collections.Counter()
        self._waiting: dict[str, collections.deque[asyncio.Future[None]]] = {}
        """The tenant whose turn is next comes first; a tenant without waiting queries has no entry."""

    @contextlib.asynccontextmanager
    async def taken(self, tenant: str) -> AsyncIterator[None]:
        """Waits for a slot and holds it during the block. Raises ResourceExhausted("TOO_MANY_QUERIES") if as many
        queries of the tenant wait as may wait."""
        await self._take(tenant)
        try:
            yield
        finally:
            self._give_back(tenant)

    async def _take(self, tenant: str) -> None:
        queue = self._waiting.setdefault(tenant, collections.deque())
        if self._free == 0 and len(queue) >= self._max_waiting:
            raise ResourceExhausted(
                "TOO_MANY_QUERIES",
                f"{len(queue)} queries of this tenant wait at this probe already; at most {self._max_waiting} may. "
                "Send the query again when earlier ones have been answered.",
            )
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(tenant)
            elif turn in queue:
                queue.remove(turn)
                if not queue:
                    del self._waiting[tenant]
            raise

    def _grant(self) -> None:
        while self._free and self._waiting:
            # The first of those with the fewest slots, in the order of turns.
            tenant = min(self._waiting, key=lambda each: self._held[each])
            queue = self._waiting.pop(tenant)
            turn = queue.popleft()
            if queue:
                self._waiting[tenant] = queue
            # A cancelled query leaves its place only when its task runs.
            if not turn.cancelled():
                turn.set_result(None)
                self._held[tenant] += 1
                self._free -= 1

    def _give_back(self, tenant: str) -> None:
        self._free += 1
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        if queue := self._waiting.pop(tenant, None):
            # It had its turn.
            self._waiting[tenant] = queue
        self._grant()
