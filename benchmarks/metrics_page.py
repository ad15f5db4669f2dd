"""Compares GetMetrics of jobs with 1,000,000 and 10,000 points: `python -m benchmarks.metrics_page`."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator

from benchmarks.stack import Stack, median, running
from benchmarks.table import Row, arguments, show
from finetuneflow.v1.fine_tuning_service_pb2 import GetMetricsRequest

_SERIES = (
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "num_tokens",
    "elapsed_seconds",
    "a",
    "b",
    "c",
    "d",
)
_MAX_POINTS = 1000


def fill(stack: Stack, job_id: str, points: int) -> None:
    def rows() -> Iterator[tuple[object, ...]]:
        for sequence in range(10, 10 + points // len(_SERIES)):
            for name in _SERIES:
                yield job_id, name, sequence, "default", 1, sequence, sequence / 1000, sequence * 0.5

    with contextlib.closing(sqlite3.connect(stack.folder / "gateway.sqlite", timeout=60)) as connection:
        columns = "work_id, name, sequence, tenant, attempt, step, epoch, value"
        statement = f"INSERT INTO metrics ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - our own names
        connection.executemany(statement, rows())
        connection.commit()


def seconds(stack: Stack, job_id: str, times: int) -> float:
    channel, stub = stack.stubs()
    with channel:
        taken = []
        for _ in range(times):
            began = time.monotonic()
            answer = stub.GetMetrics(GetMetricsRequest(job_id=job_id, max_points=_MAX_POINTS), timeout=120)
            taken.append(time.monotonic() - began)
            assert len(answer.series) == len(_SERIES)
    return median(taken)


def main() -> list[Row]:
    given = arguments(rounds=5, seconds=0)
    with running() as stack:
        small, large = stack.create_job(), stack.create_job()
        fill(stack, small, 10_000)
        fill(stack, large, 1_000_000)
        few, many = seconds(stack, small, given.rounds), seconds(stack, large, given.rounds)
    return [
        Row(
            f"GetMetrics, {_MAX_POINTS} of each of {len(_SERIES)} curves, 1,000,000 points in SQL against 10,000",
            many / few,
            "x",
            "none given",
            f"{many * 1000:.0f} ms against {few * 1000:.0f} ms",
        )
    ]


if __name__ == "__main__":
    show(main())
