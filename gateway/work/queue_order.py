"""The order in which the waiting attempts of a queue are claimed: fair among tenants, then by priority, then by age.

The tenant that holds the fewest claims of the queue is next; of several, the one whose last claim is longest ago. It is
decided in SQL when a worker claims, not when an attempt is offered: the broker's order has no influence, and gateways
need not agree on anything. Times only order tenants that are equal otherwise.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, bindparam, exists, func, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import SQLModel

from finetuneflow.v1.work_pb2 import WorkItem
from gateway.sql.tables import Attempt, now
from gateway.work.kinds import SERVICES, queue_of

_ATTEMPTS: Final = SQLModel.metadata.tables[Attempt.__tablename__]
_STAGES: Final = {service: stage for stage, service in SERVICES.items()}


def _in_queue(state: str, table: Any = _ATTEMPTS) -> ColumnElement[bool]:
    return and_(table.c.state == state, table.c.stage == bindparam("stage"), table.c.pool == bindparam("pool"))


def _due(table: Any = _ATTEMPTS) -> ColumnElement[bool]:
    return and_(_in_queue("READY", table), table.c.not_before <= bindparam("now"))


def _tenants() -> Any:
    """Selects the tenants of READY attempts, one step in the index for each: a tenant may have thousands."""
    first = select(func.min(_ATTEMPTS.c.tenant).label("name")).where(_in_queue("READY")).cte("tenants", recursive=True)
    another = _ATTEMPTS.alias()
    following = select(func.min(another.c.tenant)).where(_in_queue("READY", another), another.c.tenant > first.c.name)
    return first.union_all(select(following.scalar_subquery()).where(first.c.name.is_not(None)))


def _ordered_shares() -> Select[Any]:
    tenants = _tenants()
    due, held, past = (_ATTEMPTS.alias() for _ in range(3))
    claimed = select(func.count()).where(_in_queue("CLAIMED", held), held.c.tenant == tenants.c.name)
    last = select(func.coalesce(func.max(past.c.claim_time), 0)).where(
        past.c.tenant == tenants.c.name, past.c.stage == bindparam("stage")
    )
    columns = claimed.scalar_subquery().label("claimed"), last.scalar_subquery().label("last")
    return (
        select(tenants.c.name.label("tenant"), *columns)
        .where(exists().where(_due(due), due.c.tenant == tenants.c.name))
        .order_by(*columns, tenants.c.name)
    )


# Made once: to build a statement costs more than to run it, and a claim makes others wait.
_SHARES: Final = _ordered_shares()
"""The tenants of attempts that are due, the next one first, each with its claims and the time of their latest."""
_FIRST_SHARE: Final = _SHARES.limit(1)
_OLDEST: Final = (
    select(_ATTEMPTS.c.work_id, _ATTEMPTS.c.stage, _ATTEMPTS.c.attempt)
    .where(_due(), _ATTEMPTS.c.tenant == bindparam("tenant"))
    .order_by(_ATTEMPTS.c.rank, _ATTEMPTS.c.work_id)
    .limit(1)
)


async def next_waiting(connection: AsyncConnection, queue: tuple[str, str]) -> WorkItem | None:
    """Returns the attempt of a queue, a service and a pool, that is claimed next; None if none is due."""
    values = _values(queue)
    while share := (await connection.execute(_FIRST_SHARE, values)).first():
        row = (await connection.execute(_OLDEST, {**values, "tenant": share.tenant})).first()
        if row is not None:
            return WorkItem(job_id=row.work_id, stage=row.stage, attempt=row.attempt)
        # On PostgreSQL another transaction has claimed the tenant's last one in between.
    return None


async def number_before(connection: AsyncConnection, attempt: Attempt) -> int:
    """Returns how many waiting attempts are claimed before a waiting one, provided that none ends or is added."""
    values = _values(queue_of(attempt.stage, attempt.pool))
    older = and_(_ATTEMPTS.c.rank == attempt.rank, _ATTEMPTS.c.work_id < attempt.work_id)
    mine = select(func.count()).where(
        _due(), _ATTEMPTS.c.tenant == attempt.tenant, (_ATTEMPTS.c.rank < attempt.rank) | older
    )
    before: int = (await connection.execute(mine, values)).scalar_one()
    shares = {row.tenant: row for row in (await connection.execute(_SHARES, values)).all()}
    own = shares.pop(attempt.tenant, None)
    if own is None:
        return 0
    numbers = select(_ATTEMPTS.c.tenant, func.count()).where(_due()).group_by(_ATTEMPTS.c.tenant)
    waiting = {row[0]: row[1] for row in (await connection.execute(numbers, values)).all()}
    # Its turn comes when its tenant holds this many claims. Others get as many before it; at equal numbers one more
    # goes to the tenant whose last claim is longer ago: not to one that has just caught up.
    turn = own.claimed + before
    for tenant, share in shares.items():
        first = (own.claimed, share.last, tenant) < (share.claimed, own.last, attempt.tenant)
        before += min(waiting.get(tenant, 0), max(turn - share.claimed + first, 0))
    return before


def _values(queue: tuple[str, str]) -> dict[str, Any]:
    service, pool = queue
    return {"stage": _STAGES[service], "pool": pool, "now": now()}
