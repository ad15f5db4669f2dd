"""A tenant with many queries delays its own queries, and not those of others."""

import asyncio

import pytest

from chassis.errors import ResourceExhausted
from services.probe.queries.fair_slots import FairSlots


class Queries:
    """Queries that run until they are told to end."""

    def __init__(self, slots: FairSlots) -> None:
        self._slots = slots
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.running: list[str] = []

    async def send(self, *names: str) -> None:
        """Sends queries; the first letter of a name is its tenant."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._run(name))
        await settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self._tasks[name]
        await settle()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.wait([self._tasks[name]])
        await settle()

    async def _run(self, name: str) -> None:
        async with self._slots.taken(name[0]):
            self.running.append(name)
            try:
                await self._ends[name].wait()
            finally:
                self.running.remove(name)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_another_tenant_is_next_however_many_queries_wait() -> None:
    """One caller who sends a hundred queries would otherwise keep all others waiting for hours."""
    queries = Queries(FairSlots(2, 10))
    await queries.send("a1", "a2", "a3", "a4", "a5", "b1", "c1", "b2")
    assert queries.running == ["a1", "a2"]
    await queries.end("a1")
    assert queries.running == ["a2", "b1"]
    await queries.end("a2")
    assert queries.running == ["b1", "c1"]
    await queries.end("c1")
    assert queries.running == ["b1", "a3"]
    await queries.end("b1")
    assert queries.running == ["a3", "b2"]
    await queries.end("b2")
    assert queries.running == ["a3", "a4"]


async def test_a_tenant_alone_uses_all_slots() -> None:
    queries = Queries(FairSlots(2, 10))
    await queries.send("a1", "a2")
    assert queries.running == ["a1", "a2"]


async def test_a_query_beyond_the_queue_is_refused_with_the_number() -> None:
    """Queries that wait hold connections and memory of the probe; the caller must hear that it has to wait."""
    slots = FairSlots(1, 2)
    queries = Queries(slots)
    await queries.send("a1", "a2", "a3")
    with pytest.raises(ResourceExhausted, match=r"2 queries of this tenant wait.*at most 2 may") as caught:
        async with slots.taken("a"):
            pass
    assert caught.value.reason == "TOO_MANY_QUERIES"
    await queries.send("b1")
    await queries.end("a1")
    assert queries.running == ["b1"]


async def test_a_cancelled_query_gives_its_place_and_its_slot_back() -> None:
    """Otherwise a probe would be out of slots after a few callers who hang up."""
    queries = Queries(FairSlots(1, 2))
    await queries.send("a1", "a2", "b1")
    await queries.cancel("a2")
    await queries.cancel("a1")
    assert queries.running == ["b1"]
    await queries.cancel("b1")
    await queries.send("c1")
    assert queries.running == ["c1"]
