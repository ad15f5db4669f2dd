"""Metric curves are downsampled evenly and read through an index."""

import itertools
import math

import pytest
from sqlalchemy import text

from gateway import metrics
from gateway.metrics import read_series
from gateway.sql.database import Database
from tests.gateway.serving import add_job


async def fill(database: Database, job_id: str, name: str, sequences: range, value: float | None = 1.0) -> None:
    rows = [
        {"work_id": job_id, "name": name, "sequence": number, "value": value and value * number} for number in sequences
    ]
    columns = "work_id, name, sequence, tenant, attempt, step, epoch, value"
    async with database.write() as session:
        connection = await session.connection()
        await connection.execute(
            text(f"INSERT INTO metrics ({columns}) VALUES (:work_id, :name, :sequence, 'default', 1, 5, 0.5, :value)"),  # noqa: S608
            rows,
        )


async def test_long_curve_is_downsampled_evenly_with_first_and_last_point(database: Database) -> None:
    job_id = await add_job(database)
    await fill(database, job_id, "loss", range(7, 5000, 3))
    for limit in (2, 3, 10, 99, 1000):
        async with database.read() as session:
            (series,) = await read_series(session, job_id, (), limit)
        sequences = [point.sequence for point in series.points]
        assert (sequences[0], sequences[-1]) == (7, 4999)
        assert limit / 2 <= len(sequences) <= limit
        gaps = [after - before for before, after in itertools.pairwise(sequences)]
        assert max(gaps) <= 2 * 5000 / (limit - 1) + 3, "the downsampled curve has a gap"
        assert [point.value for point in series.points] == sequences


async def test_short_series_is_not_downsampled_beside_long_one(database: Database) -> None:
    """Evaluations are few: downsampling the losses must not remove them."""
    job_id = await add_job(database)
    await fill(database, job_id, "loss", range(1, 3000))
    await fill(database, job_id, "eval_loss", range(100, 3000, 100))
    await fill(database, await add_job(database), "loss", range(1, 50))
    async with database.read() as session:
        losses, evaluations = sorted(await read_series(session, job_id, (), 50), key=lambda each: -ord(each.name[0]))
    assert len(losses.points) <= 50
    assert [point.sequence for point in evaluations.points] == list(range(100, 3000, 100))


async def test_series_are_filtered_by_name_and_nan_is_kept(database: Database) -> None:
    job_id = await add_job(database)
    await fill(database, job_id, "loss", range(1, 4), value=None)
    await fill(database, job_id, "grad_norm", range(1, 4))
    async with database.read() as session:
        (series,) = await read_series(session, job_id, ["loss", "nothing"], 10)
    assert series.name == "loss"
    assert all(math.isnan(point.value) for point in series.points)


async def test_reading_a_curve_uses_the_index(database: Database) -> None:
    """A million points must be read as fast as ten thousand, without a table scan."""
    if not database.is_sqlite:
        pytest.skip("PostgreSQL's planner looks at statistics, which an empty table does not have")
    job_id = await add_job(database)
    values = {"work_id": job_id, "name": "loss", "first": 1, "stride": 10, "last": 9, "enough": 10}
    async with database.read() as session:
        connection = await session.connection()
        for query in (metrics._NAMES, metrics._SPAN, metrics._THINNED, metrics._LAST):
            wanted = {name: values[name] for name in query._bindparams}
            plan = (await connection.execute(text(f"EXPLAIN QUERY PLAN {query.text}"), wanted)).all()
            steps = [row.detail for row in plan if " metrics" in row.detail or " m " in row.detail]
            assert steps
            assert all(step.startswith("SEARCH") and "work_id=?" in step for step in steps), steps
            assert query is not metrics._THINNED or any("sequence=?" in step for step in steps), steps
