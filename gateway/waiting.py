"""Why a queued job waits, in a sentence for its owner."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import Unavailable
from finetuneflow.v1.work_pb2 import Node
from gateway.sql.tables import Attempt, now
from gateway.work.kinds import queue_of
from gateway.work.queue_order import number_before

Nodes = Callable[[], Awaitable[list[Node]]]
"""Returns all live nodes. Raises Unavailable."""


async def why_it_waits(session: AsyncSession, attempt: Attempt, nodes: Nodes) -> str:
    """Returns the reason for which a READY attempt waits."""
    left = min(attempt.not_before - now(), attempt.not_before - attempt.create_time)
    if left > 0:
        return f"It is tried again in {-(-left // 1_000_000)} s, after its last failure."
    before = await number_before(await session.connection(), attempt)
    position = f"{before:,} {'attempt is' if before == 1 else 'attempts are'} before it."
    service, pool = queue_of(attempt.stage, attempt.pool)
    try:
        live = [node for node in await nodes() if node.service == service and (node.pool or "default") == pool]
    except Unavailable:
        return f"The message broker is unavailable, so no worker can take it. {position}"
    live = [node for node in live if not node.draining]
    noun = f"{service} of pool {pool!r}"
    if not live:
        return f"No {noun} is running; ask the operator to start one. {position}"
    slots = sum(node.slots for node in live)
    if sum(len(node.runs) for node in live) >= slots:
        busy = f"The slot of the {noun} is busy" if slots == 1 else f"All {slots} slots of pool {pool!r} are busy"
        return f"{busy}. {position}"
    return position if before else f"A {noun} is about to take it."
