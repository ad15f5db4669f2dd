"""Measures the time from the death of a child to the first step of the next attempt: `python -m benchmarks.restart`.

The child is killed with SIGKILL; the clock stops when the first log event of attempt+1 is accepted and reaches a
watcher. The child trains nothing and starts in a fraction of a second, so everything except the start of the training
is measured: the supervisor notices and reports, the gateway decides and dispatches, a worker claims and starts a child.
The limit for that is two heartbeats; a real training adds its own (warm) start.
"""

from __future__ import annotations

import time

import psutil

from benchmarks.stack import Part, median, running
from benchmarks.table import Row, arguments, show
from chassis.attempt.time_limits import TimeLimits
from finetuneflow.v1.fine_tuning_service_pb2 import WatchFineTuningJobRequest

_LIMIT = 2 * TimeLimits.heartbeat_seconds


def main() -> list[Row]:
    given = arguments(rounds=3, seconds=0)
    taken = []
    with running() as stack:
        for _ in range(given.rounds):
            job_id = stack.create_job()
            env = stack.env | {"FTF_HOME": str(stack.folder / "trainer"), "FTF_LOG_LEVEL": "ERROR"}
            channel, stub = stack.stubs()
            with channel, Part("benchmarks.training", "run", 20, 1, env=env) as part:
                part.hear()
                killed = 0.0
                for answer in stub.WatchFineTuningJob(WatchFineTuningJobRequest(job_id=job_id, kinds=["log"])):
                    attempts = {event.attempt for event in answer.events}
                    if 1 in attempts and not killed:
                        killed = time.monotonic()
                        for child in psutil.Process(part.popen.pid).children(recursive=True):
                            if "benchmarks.child" in child.cmdline():
                                child.kill()
                    if 2 in attempts:
                        taken.append(time.monotonic() - killed)
                        break
                stack.cancel_job(job_id)
    return [
        Row(
            "child dies -> first step of attempt+1, without the start of a real training",
            median(taken) / _LIMIT,
            "of 2 heartbeats",
            "<= 1",
            f"{median(taken):.2f} s of {_LIMIT:.0f} s",
        )
    ]


if __name__ == "__main__":
    show(main())
