"""Servers that the gateway is compared with: `python -m benchmarks.servers constant SIZE` or `naive`.

`constant` streams one byte string of SIZE events from memory, as fast as gRPC accepts it. `naive` is the simplest
gateway: each watcher has its own NATS subscription, and each event is decoded, wrapped and serialised for each watcher.
 Both print their address.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import nats
from nats.aio.client import Client

from benchmarks.training import event_at
from chassis.events import varint
from finetuneflow.v1.event_pb2 import Event
from finetuneflow.v1.fine_tuning_service_pb2 import WatchFineTuningJobRequest, WatchFineTuningJobResponse

NAIVE_SUBJECT = "bench.naive"
NAIVE_DELIVERED = "bench.delivered"


def batch(size: int) -> bytes:
    """Returns a response with `size` events."""
    out = bytearray()
    for step in range(size):
        event = event_at("ftjob_" + "0" * 26, step)
        event.sequence = step + 1
        data = event.SerializeToString()
        out += b"\x0a" + varint(len(data)) + data
    return bytes(out) + b"\x10" + varint(size)


async def constant(size: int) -> None:
    message = batch(size)

    async def watch(request: WatchFineTuningJobRequest, context: Any) -> AsyncIterator[bytes]:
        while True:
            yield message

    await _serve(watch, None)


async def naive() -> None:
    client: Client = await nats.connect(
        os.environ["FTF_NATS_URL"], user=os.environ["FTF_NATS_USER"], password=os.environ["FTF_NATS_PASSWORD"]
    )
    first: list[object] = []

    async def watch(
        request: WatchFineTuningJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[WatchFineTuningJobResponse]:
        subscription = await client.subscribe(NAIVE_SUBJECT)
        await context.send_initial_metadata(())
        first.append(subscription)
        async for message in subscription.messages:
            event = Event.FromString(message.data)
            yield WatchFineTuningJobResponse(events=[event], through_sequence=event.sequence)
            if subscription is first[0]:
                await client.publish(NAIVE_DELIVERED, b"")

    await _serve(watch, WatchFineTuningJobResponse.SerializeToString)


async def _serve(watch: Callable[..., Any], serializer: Callable[[Any], bytes] | None) -> None:
    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(watch, WatchFineTuningJobRequest.FromString, serializer)
    handlers = {"WatchFineTuningJob": handler}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("finetuneflow.v1.FineTuningService", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps(f"127.0.0.1:{port}"), flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(constant(int(sys.argv[2])) if sys.argv[1] == "constant" else naive())
