"""Measures the latency from the child's callback to 100 watchers: `python -m benchmarks.watch_latency`.

One job. Its child emits log events evenly through the real pipe; the real supervisor spools and reports them; a real
gateway accepts them into SQL and publishes them; 100 watchers, each on its own connection, receive them. The latency of
an event at a watcher is from `event_time`, which the child sets when its callback is called, to the arrival. The load
is half of what `watch_throughput` delivers, as events delivered to all watchers a second.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt

from benchmarks.stack import Part, Stack, running, wait
from benchmarks.table import Row, arguments, show
from benchmarks.watch_throughput import live, watching
from finetuneflow.v1.fine_tuning_service_pb2 import ListFineTuningJobEventsRequest
from finetuneflow.v1.fine_tuning_service_pb2_grpc import FineTuningServiceStub

_LIMIT_MS = 50.0


@contextlib.contextmanager
def training(stack: Stack, rate: float) -> Iterator[str]:
    """Starts a job that emits `rate` events a second through the whole path; yields its id."""
    job_id = stack.create_job()
    env = stack.env | {"FTF_HOME": str(stack.folder / "trainer"), "FTF_LOG_LEVEL": "WARNING"}
    with Part("benchmarks.training", "run", rate, 1, env=env, log=stack.folder / "trainer.log") as part:
        part.hear()
        yield job_id


def event_times(stack: Stack, job_id: str, first: int, last: int) -> npt.NDArray[np.int64]:
    """Returns event_time in ns of the events from `first` to `last`."""
    times: list[int] = []
    with grpc.insecure_channel(stack.address) as channel:
        stub = FineTuningServiceStub(channel)
        while first <= last:
            request = ListFineTuningJobEventsRequest(job_id=job_id, after_sequence=first - 1, page_size=1000)
            page = stub.ListFineTuningJobEvents(request, timeout=30)
            times += [event.event_time.ToNanoseconds() for event in page.events if event.sequence <= last]
            first = page.through_sequence + 1
    return np.array(times, dtype=np.int64)


def latencies_ms(stack: Stack, job_id: str, watchers: list[Part], seconds: float) -> npt.NDArray[np.float64]:
    """Returns the latency of every event at every watcher in a window."""
    for part in watchers:
        part.ask("begin")
    wait(seconds)
    files = [Path(stack.folder, f"arrivals-{number}.npy") for number in range(len(watchers))]
    for part, file in zip(watchers, files, strict=True):
        part.ask(f"end {file}")
    rows = np.concatenate([np.load(file) for file in files])
    rows = rows[rows[:, 2] > rows[:, 1]]
    first = int(rows[:, 1].min()) + 1
    times = event_times(stack, job_id, first, int(rows[:, 2].max()))
    arrived = np.repeat(rows[:, 0], rows[:, 2] - rows[:, 1])
    sequences = np.concatenate([np.arange(before + 1, after + 1) for _, before, after in rows])
    result: npt.NDArray[np.float64] = (arrived - times[sequences - first]) / 1e6
    return result


def one(database: str, rate: float, count: int, seconds: float) -> npt.NDArray[np.float64]:
    with (
        running(database) as stack,
        training(stack, rate) as job_id,
        watching(stack.address, job_id, count) as watchers,
    ):
        wait(2.0)
        return latencies_ms(stack, job_id, watchers, seconds)


def main() -> list[Row]:
    given = arguments(rounds=3, seconds=5.0)
    with running() as stack:
        live(stack, given.watchers, 1.0)
        delivered = live(stack, given.watchers, given.seconds).events_per_second
    rate = delivered / 2 / given.watchers
    rows = []
    for database in ("sqlite", "postgresql"):
        windows = [one(database, rate, given.watchers, given.seconds) for _ in range(given.rounds)]
        p99 = float(np.median([np.percentile(window, 99) for window in windows]))
        p50 = float(np.median([np.percentile(window, 50) for window in windows]))
        rows.append(
            Row(
                f"p99 from the child's callback to {given.watchers} watchers, {database}",
                p99,
                "ms",
                f"<= {_LIMIT_MS:.0f}",
                f"{p99 / _LIMIT_MS:.2f} of the limit; p50 {p50:.1f} ms at {rate * given.watchers:,.0f} events/s "
                f"delivered, {rate:,.0f} events/s accepted",
            )
        )
    return rows


if __name__ == "__main__":
    show(main())
