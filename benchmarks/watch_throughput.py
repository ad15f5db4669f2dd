"""Measures the events per second delivered to 100 watchers of one job: `python -m benchmarks.watch_throughput`.

A training reports as fast as it is accepted, and every accepted event reaches every watcher. The first figure is
compared with a server that only streams one byte string with the same number of events; the deliveries per second of
the gateway's CPU time (acceptance into SQL included) are compared with a naive gateway.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.stack import Part, Stack, median, running, wait
from benchmarks.table import Row, arguments, show

_PROCESSES = 2


@dataclass
class Window:
    """The deliveries of one window."""

    events_per_second: float
    events_per_cpu_second: float
    events_per_message: float


def window(server: Part, watchers: list[Part], seconds: float, batch: int = 0) -> Window:
    """Measures one window; `batch` is the number of events in a message if cursors do not tell it."""
    for part in watchers:
        part.ask("begin")
    cpu = server.cpu_seconds()
    took = wait(seconds)
    cpu = server.cpu_seconds() - cpu
    counts = [part.ask("end") for part in watchers]
    messages = sum(count["messages"] for count in counts)
    events = messages * batch if batch else sum(count["events"] for count in counts)
    return Window(events / took, events / max(cpu, 1e-9), events / max(messages, 1))


@contextlib.contextmanager
def watching(address: str, job_id: str, count: int, after: int = 0) -> Iterator[list[Part]]:
    with contextlib.ExitStack() as stack:
        parts = [
            stack.enter_context(Part("benchmarks.watchers", address, job_id, count // _PROCESSES, "--from", after))
            for _ in range(_PROCESSES)
        ]
        for part in parts:
            part.hear()
        yield parts


def live(stack: Stack, count: int, seconds: float) -> Window:
    stack.create_job()
    with Part("benchmarks.training", "pump", 50, env=stack.env) as pump:
        job_id = pump.hear()["job"]
        with watching(stack.address, job_id, count) as watchers:
            wait(1.0)
            result = window(stack.gateway, watchers, seconds)
        pump.tell("")
        pump.popen.wait(30)
        stack.cancel_job(job_id)
        return result


def constant(batch: int, count: int, seconds: float) -> Window:
    with Part("benchmarks.servers", "constant", batch) as server, watching(server.hear(), "any", count) as watchers:
        wait(0.5)
        return window(server, watchers, seconds, batch)


def naive(stack: Stack, count: int, seconds: float) -> Window:
    with Part("benchmarks.servers", "naive", env=stack.env) as server:
        address = server.hear()
        # Handlers send their metadata after subscribing; publishing starts when all have subscribed.
        with (
            watching(address, "any", count) as watchers,
            Part("benchmarks.training", "naive", 4, env=stack.env) as source,
        ):
            source.hear()
            wait(0.5)
            return window(server, watchers, seconds, 1)


def main() -> list[Row]:
    given = arguments(rounds=3, seconds=4.0)
    ours, bytes_only, naives = [], [], []
    with running() as stack:
        live(stack, given.watchers, 1.0)
        for _ in range(given.rounds):
            ours.append(live(stack, given.watchers, given.seconds))
            bytes_only.append(constant(round(ours[-1].events_per_message), given.watchers, given.seconds))
            naives.append(naive(stack, given.watchers, given.seconds))
    share = median([a.events_per_second / b.events_per_second for a, b in zip(ours, bytes_only, strict=True)])
    per_cpu = median([a.events_per_cpu_second / b.events_per_cpu_second for a, b in zip(ours, naives, strict=True)])
    mine, theirs, plain = median_window(ours), median_window(bytes_only), median_window(naives)
    return [
        Row(
            f"events/s to {given.watchers} watchers, against constant bytes",
            share,
            "x",
            ">= 0.5",
            f"{mine.events_per_second:,.0f} against {theirs.events_per_second:,.0f} events/s, "
            f"{mine.events_per_message:.0f} events a message; "
            f"per CPU-second of the server {mine.events_per_cpu_second:,.0f} "
            f"against {theirs.events_per_cpu_second:,.0f}",
        ),
        Row(
            "delivered events per gateway CPU-second, against a naive gateway",
            per_cpu,
            "x",
            ">= 5",
            f"{mine.events_per_cpu_second:,.0f} against {plain.events_per_cpu_second:,.0f}",
        ),
    ]


def median_window(windows: list[Window]) -> Window:
    return Window(
        *(median([getattr(w, name) for w in windows]) for name in Window.__dataclass_fields__),
    )


if __name__ == "__main__":
    show(main())
