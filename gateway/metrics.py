"""Metric series, thinned in SQL: the index is read once for each point returned, not for each point stored."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from finetuneflow.v1.work_pb2 import MetricPoint, MetricSeries

MAX_ANSWER_POINTS = 100_000
"""Maximum number of points of all series together: about 2.7 MB, below the 4 MiB that a client accepts."""

_NAMES = text("""
    WITH RECURSIVE found(name) AS (
        SELECT (SELECT name FROM metrics WHERE work_id = :work_id ORDER BY name LIMIT 1)
        UNION ALL
        SELECT (SELECT m.name FROM metrics m WHERE m.work_id = :work_id AND m.name > found.name ORDER BY m.name LIMIT 1)
        FROM found WHERE found.name IS NOT NULL
    )
    SELECT name FROM found WHERE name IS NOT NULL
""")
_SPAN = text("""
    SELECT
        (SELECT sequence FROM metrics WHERE work_id = :work_id AND name = :name ORDER BY sequence LIMIT 1),
        (SELECT sequence FROM metrics WHERE work_id = :work_id AND name = :name ORDER BY sequence DESC LIMIT 1),
        (SELECT count(*) FROM
            (SELECT 1 AS one FROM metrics WHERE work_id = :work_id AND name = :name LIMIT :enough) AS points)
""")
_ALL = text("""
    SELECT step, value, epoch, sequence FROM metrics
    WHERE work_id = :work_id AND name = :name AND sequence <= :last ORDER BY sequence
""")
_THINNED = text("""
    WITH RECURSIVE picked(sequence) AS (
        SELECT CAST(:first AS BIGINT)
        UNION ALL
        SELECT (
            SELECT m.sequence FROM metrics m
            WHERE m.work_id = :work_id AND m.name = :name AND m.sequence >= picked.sequence + :stride
            ORDER BY m.sequence LIMIT 1
        )
        FROM picked WHERE picked.sequence IS NOT NULL
    )
    SELECT step, value, epoch, sequence FROM metrics
    WHERE work_id = :work_id AND name = :name AND sequence IN (SELECT sequence FROM picked)
    ORDER BY sequence
""")
_LAST = text("""
    SELECT step, value, epoch, sequence FROM metrics
    WHERE work_id = :work_id AND name = :name AND sequence = :last
""")


async def read_series(session: AsyncSession, work_id: str, names: Sequence[str], max_points: int) -> list[MetricSeries]:
    """Returns one series for each name that has points, sorted by name; all names if `names` is empty.

    A series with more than `max_points` (at least 2) points is thinned evenly over the job's history; the first and the
    last point are always included.
    """
    connection = await session.connection()
    if not names:
        names = (await connection.execute(_NAMES, {"work_id": work_id})).scalars().all()
    max_points = max(2, min(max_points, MAX_ANSWER_POINTS // max(len(names), 1)))
    series = []
    for name in sorted(set(names)):
        which: dict[str, Any] = {"work_id": work_id, "name": name}
        first, last, count = (await connection.execute(_SPAN, which | {"enough": max_points + 1})).one()
        if not count:
            continue
        if count <= max_points:
            rows = list((await connection.execute(_ALL, which | {"last": last})).all())
        else:
            stride = -(-(last - first) // (max_points - 1))
            rows = list((await connection.execute(_THINNED, which | {"first": first, "stride": stride})).all())
            if rows[-1].sequence != last:
                rows += (await connection.execute(_LAST, which | {"last": last})).all()
        series.append(MetricSeries(name=name, points=map(_point, rows)))
        # Ten thousand messages take 20 ms, and watchers wait.
        await asyncio.sleep(0)
    return series


def _point(row: Any) -> MetricPoint:
    step, value, epoch, sequence = row
    return MetricPoint(step=step, value=math.nan if value is None else value, epoch=epoch, sequence=sequence)
