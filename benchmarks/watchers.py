"""Runs watchers in a process of their own: `python -m benchmarks.watchers ADDRESS JOB COUNT [--from N] [--stalled]`.

Each has its own connection. Commands on stdin: `begin` starts a window; `end FILE` ends it, prints the counts and, with
a file, stores every arrival; `position` prints the cursor of the slowest. Only the cursor at the end of a message
is decoded, so that the server is measured, not the client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from typing import Any

import grpc
import numpy as np

from finetuneflow.v1.fine_tuning_service_pb2 import WatchFineTuningJobRequest

METHOD = "/finetuneflow.v1.FineTuningService/WatchFineTuningJob"
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 8 << 20))


def through(message: bytes) -> int:
    """Returns `through_sequence`, the last field of a response."""
    start = len(message) - 1
    while message[start - 1] & 0x80:
        start -= 1
    value = 0
    for byte in reversed(message[start:]):
        value = value << 7 | byte & 0x7F
    return value


class Watcher:
    """One watch stream."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.messages = self.events = self.bytes = 0
        self.arrivals: list[tuple[int, int, int]] = []
        """(when, in ns of the day; cursor before; cursor after)"""

    async def follow(self, address: str, job_id: str, *, stalled: bool, ready: asyncio.Semaphore) -> None:
        async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
            request = WatchFineTuningJobRequest(job_id=job_id, after_sequence=self.position)
            watch = channel.unary_stream(METHOD, WatchFineTuningJobRequest.SerializeToString, None)
            call = watch(request)
            # A server sends it with the first message, or as soon as it is ready to send one.
            await call.initial_metadata()
            ready.release()
            if stalled:
                await asyncio.Event().wait()
            async for message in call:
                now = time.time_ns()
                self.messages += 1
                self.bytes += len(message)
                cursor = through(message)
                self.arrivals.append((now, self.position, cursor))
                self.events += cursor - self.position
                self.position = cursor


def _counts(watchers: list[Watcher]) -> dict[str, int]:
    return {
        "events": sum(w.events for w in watchers),
        "messages": sum(w.messages for w in watchers),
        "bytes": sum(w.bytes for w in watchers),
    }


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("job")
    parser.add_argument("count", type=int)
    parser.add_argument("--from", dest="after", type=int, default=0)
    parser.add_argument("--stalled", action="store_true")
    given = parser.parse_args()
    watchers = [Watcher(given.after) for _ in range(given.count)]
    ready = asyncio.Semaphore(0)
    tasks = [
        asyncio.create_task(w.follow(given.address, given.job, stalled=given.stalled, ready=ready)) for w in watchers
    ]
    for _ in tasks:
        await ready.acquire()
    _say({"ready": len(tasks)})
    before: dict[str, int] = {}
    cpu = 0.0
    loop = asyncio.get_running_loop()
    while line := (await loop.run_in_executor(None, sys.stdin.readline)).split():
        for task in tasks:
            if task.done() and not given.stalled:
                task.result()
        if line[0] == "begin":
            before, cpu = _counts(watchers), time.process_time()
            for watcher in watchers:
                watcher.arrivals.clear()
            _say({})
        elif line[0] == "position":
            _say(min(w.position for w in watchers))
        elif line[0] == "end":
            after = _counts(watchers)
            if len(line) > 1:
                rows: list[Any] = [arrival for watcher in watchers for arrival in watcher.arrivals]
                np.save(line[1], np.array(rows, dtype=np.int64).reshape(-1, 3))
            used = time.process_time() - cpu
            _say({name: after[name] - before[name] for name in after} | {"cpu": used})
    os._exit(0)


def _say(what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
