"""Measures the time from CreateFineTuningJob to a granted claim on an idle system.

`python -m benchmarks.dispatch_latency`. The clock starts before the call; it stops when the claim for the job's first
attempt has been granted to a waiting worker in another process. The gateway commits before it answers or dispatches.
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.stack import Part, running, upload_rows
from benchmarks.table import Row, arguments, show
from finetuneflow.v1.fine_tuning_service_pb2 import CreateFineTuningJobRequest

_LIMIT_MS = 100.0


def main() -> list[Row]:
    given = arguments(rounds=200, seconds=0)
    with running() as stack, Part("benchmarks.training", "take", env=stack.env) as taker:
        taker.hear()
        channel, stub = stack.stubs()
        with channel:
            spec = {"base_model": "smollm2-135m", "training_data": [{"dataset": upload_rows(channel)}]}
            request = CreateFineTuningJobRequest(spec=spec)
            taken = []
            for _ in range(given.rounds):
                began = time.time_ns()
                job_id = stub.CreateFineTuningJob(request, timeout=30).fine_tuning_job.id
                got = taker.hear()
                assert got["job"] == job_id
                taken.append((got["at"] - began) / 1e6)
    p50, p99 = np.percentile(taken[len(taken) // 10 :], [50, 99])
    return [
        Row(
            "p99 from create to the work item in a worker's hands, idle",
            float(p99),
            "ms",
            f"<= {_LIMIT_MS:.0f}",
            f"{p99 / _LIMIT_MS:.2f} of the limit; p50 {p50:.1f} ms, {given.rounds} jobs",
        )
    ]


if __name__ == "__main__":
    show(main())
