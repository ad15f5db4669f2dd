"""Measures the effect of a watcher that never reads on the others: `python -m benchmarks.stalled_watcher`.

The same training is watched without and with a stalled watcher, in turns, and the p99 latencies are divided. Then ten
stalled watchers are opened, and the growth of the gateway's memory is divided by ten.
"""

from __future__ import annotations

import numpy as np

from benchmarks.stack import Part, median, running, wait
from benchmarks.table import Row, arguments, show
from benchmarks.watch_latency import latencies_ms, training
from benchmarks.watch_throughput import watching

_RATE = 400
_STALLED = 10


def main() -> list[Row]:
    given = arguments(rounds=4, seconds=4.0)
    without, beside = [], []
    with (
        running() as stack,
        training(stack, _RATE) as job_id,
        watching(stack.address, job_id, given.watchers) as watchers,
    ):
        wait(2.0)

        def p99() -> float:
            return float(np.percentile(latencies_ms(stack, job_id, watchers, given.seconds), 99))

        for _ in range(given.rounds):
            without.append(p99())
            with Part("benchmarks.watchers", stack.address, job_id, 1, "--stalled") as part:
                part.hear()
                beside.append(p99())
        before = stack.gateway.rss_bytes()
        with Part("benchmarks.watchers", stack.address, job_id, _STALLED, "--stalled") as part:
            part.hear()
            wait(given.seconds)
            grown = (stack.gateway.rss_bytes() - before) / _STALLED
    effect = median(beside) / median(without)
    return [
        Row(
            "p99 of the others beside one stalled watcher, against none",
            effect,
            "x",
            "<= 1.1",
            f"{median(beside):.1f} ms against {median(without):.1f} ms, {_RATE * given.watchers:,} events/s delivered",
        ),
        Row(
            "memory of a stalled watcher",
            max(grown, 0) / 2**20,
            "MiB",
            "<= 2",
            f"{max(grown, 0) / 2**21:.2f} of the limit; growth of the gateway by {_STALLED} of them, divided",
        ),
    ]


if __name__ == "__main__":
    show(main())
