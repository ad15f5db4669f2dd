"""Measures the gateway's memory after opening and cancelling many watch streams: `python -m benchmarks.watch_memory`.

Streams are opened in groups on one connection, each reads its first message and is cancelled. Memory is compared after
the first tenth (pools and caches are filled then) and at the end.
"""

from __future__ import annotations

import argparse
import asyncio

import grpc

from benchmarks.stack import Part, running, wait
from benchmarks.table import Row, show
from benchmarks.watchers import METHOD
from finetuneflow.v1.fine_tuning_service_pb2 import WatchFineTuningJobRequest

_GROUP = 100


async def open_and_cancel(address: str, job_id: str, streams: int) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        watch = channel.unary_stream(METHOD, WatchFineTuningJobRequest.SerializeToString, None)
        request = WatchFineTuningJobRequest(job_id=job_id)

        async def one() -> None:
            call = watch(request)
            await call.read()
            call.cancel()

        for _ in range(streams // _GROUP):
            await asyncio.gather(*(one() for _ in range(_GROUP)))


def settled_rss(gateway: Part) -> float:
    wait(2.0)
    return gateway.rss_bytes() / 2**20


def main() -> list[Row]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=20_000)
    streams = parser.parse_known_args()[0].streams
    with running() as stack:
        job_id = stack.create_job()
        asyncio.run(open_and_cancel(stack.address, job_id, streams // 10))
        warm = settled_rss(stack.gateway)
        asyncio.run(open_and_cancel(stack.address, job_id, streams - streams // 10))
        end = settled_rss(stack.gateway)
    return [
        Row(
            f"gateway memory after {streams:,} watch streams opened and cancelled, against after a tenth of them",
            end / warm,
            "x",
            "flat",
            f"{end:.1f} MiB against {warm:.1f} MiB",
        )
    ]


if __name__ == "__main__":
    show(main())
