"""The order in which the waiting attempts of a queue are claimed: fair among tenants, then by priority, then by age.

The tenant that holds the fewest claims of the queue is next; of several, the one whose last claim is longest ago. It is
decided in SQL when a worker claims, not when an attempt is offered: the broker's order has no influence between tenants
or priorities, and gateways need not agree on anything. Times only order tenants that are equal otherwise.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import SQLModel

from finetuneflow.v1.work_pb2 import WorkItem
from gateway.sql.tables import Attempt, now
from gateway.work.kinds import SERVICES, queue_of

_ATTEMPTS: Final = SQLModel.metadata.tables[Attempt.__tablename__]
_STAGES: Final = {service: stage for stage, service in SERVICES.items()}


def _in_queue(table: Any, queue: tuple[str, str], state: str) -> ColumnElement[bool]:
    service, pool = queue
    stage = _STAGES[service]
    found = and_(table.c.state == state, table.c.stage == stage)
    # Only the queues of trainings have the pools of their jobs.
    return and_(found, table.c.pool == pool) if queue_of(stage, pool) != queue_of(stage, "") else found


def _waiting(table: Any, queue: tuple[str, str]) -> ColumnElement[bool]:
    return and_(_in_queue(table, queue, "READY"), table.c.not_before <= now())


def _shares(queue: tuple[str, str]) -> Any:
    """Selects the tenants of waiting attempts: how many wait, how many are claimed, and when the last was claimed."""
    waiting = _ATTEMPTS.alias("waiting")
    tenants = (
        select(waiting.c.tenant, func.count().label("waiting"))
        .where(_waiting(waiting, queue))
        .group_by(waiting.c.tenant)
        .subquery("tenants")
    )
    held, past = _ATTEMPTS.alias("held"), _ATTEMPTS.alias("past")
    claimed = select(func.count()).where(_in_queue(held, queue, "CLAIMED"), held.c.tenant == tenants.c.tenant)
    last = select(func.coalesce(func.max(past.c.claim_time), 0)).where(
        past.c.tenant == tenants.c.tenant, past.c.stage == _STAGES[queue[0]]
    )
    return select(
        tenants.c.tenant,
        tenants.c.waiting,
        claimed.scalar_subquery().label("claimed"),
        last.scalar_subquery().label("last"),
    )


def _first(queue: tuple[str, str]) -> Select[Any]:
    shares = _shares(queue).subquery("shares")
    return (
        select(_ATTEMPTS.c.work_id, _ATTEMPTS.c.stage, _ATTEMPTS.c.attempt)
        .join(shares, shares.c.tenant == _ATTEMPTS.c.tenant)
        .where(_waiting(_ATTEMPTS, queue))
        .order_by(shares.c.claimed, shares.c.last, _ATTEMPTS.c.tenant, _ATTEMPTS.c.priority.desc(), _ATTEMPTS.c.work_id)
        .limit(1)
    )


async def next_waiting(connection: AsyncConnection, queue: tuple[str, str]) -> WorkItem | None:
    """Returns the attempt of a queue, a service and a pool, that is claimed next; None if none is due."""
    row = (await connection.execute(_first(queue))).first()
    return None if row is None else WorkItem(job_id=row.work_id, stage=row.stage, attempt=row.attempt)


async def number_before(connection: AsyncConnection, attempt: Attempt) -> int:
    """Returns how many waiting attempts are claimed before a waiting one, provided that none ends or is added."""
    queue = queue_of(attempt.stage, attempt.pool)
    table = _ATTEMPTS
    mine = select(func.count()).where(
        _waiting(table, queue),
        table.c.tenant == attempt.tenant,
        (table.c.priority > attempt.priority)
        | ((table.c.priority == attempt.priority) & (table.c.work_id < attempt.work_id)),
    )
    before: int = (await connection.execute(mine)).scalar_one()
    shares = {row.tenant: row for row in (await connection.execute(_shares(queue))).all()}
    own = shares.get(attempt.tenant)
    if own is None:
        return 0
    # Its turn comes when its tenant holds this many claims. Others get as many before it; at equal numbers one more
    # goes to the tenant whose last claim is longer ago: not to one that has just caught up.
    turn = own.claimed + before
    for tenant, share in shares.items():
        if tenant != attempt.tenant:
            first = (own.claimed, share.last, tenant) < (share.claimed, own.last, attempt.tenant)
            before += min(share.waiting, max(turn - share.claimed + first, 0))
    return before
