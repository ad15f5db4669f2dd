"""Curves, thinned in SQL."""

import math
from collections.abc import Sequence

import sqlalchemy
from sqlalchemy import func, or_
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from finetuneflow.v1.work_pb2 import MetricPoint, MetricSeries
from gateway.tables import Metric

MAX_ANSWER_POINTS = 100_000
"""Of all series together: about 2.7 MB, below the 4 MiB that clients take at once."""


async def read_series(session: AsyncSession, job_id: str, names: Sequence[str], max_points: int) -> list[MetricSeries]:
    """One series per name, by name; every name when `names` is empty. First and last point are always kept.
    `max_points` is at least 2.
    """
    if not names:
        distinct = select(Metric.name).where(Metric.job_id == job_id).distinct()
        names = (await session.exec(distinct)).all()
    max_points = max(2, min(max_points, MAX_ANSWER_POINTS // max(len(names), 1)))
    rank = func.row_number().over(partition_by=col(Metric.name), order_by=col(Metric.sequence))
    count = func.count().over(partition_by=col(Metric.name))
    # SQLAlchemy's select: SQLModel's is typed for four columns at most.
    numbered = sqlalchemy.select(
        col(Metric.name),
        col(Metric.step),
        col(Metric.value),
        col(Metric.epoch),
        col(Metric.sequence),
        rank.label("rank"),
        count.label("count"),
    ).where(col(Metric.job_id) == job_id, col(Metric.name).in_(names))
    rows = numbered.subquery()
    # Every stride-th point, such that at most max_points - 1 are taken, and the last one.
    stride = (rows.c.count + max_points - 2) // (max_points - 1)
    thinned = (
        sqlalchemy.select(rows.c.name, rows.c.step, rows.c.value, rows.c.epoch, rows.c.sequence)
        .where(or_((rows.c.rank - 1) % stride == 0, rows.c.rank == rows.c.count))
        .order_by(rows.c.name, rows.c.sequence)
    )
    series: dict[str, MetricSeries] = {}
    connection = await session.connection()
    for name, step, value, epoch, sequence in (await connection.execute(thinned)).all():
        points = series.setdefault(name, MetricSeries(name=name)).points
        points.append(
            MetricPoint(step=step, value=math.nan if value is None else value, epoch=epoch, sequence=sequence)
        )
    return list(series.values())
