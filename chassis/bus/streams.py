"""JetStream streams of this system: names, subjects and configuration."""

from __future__ import annotations

from typing import Final

from nats.js import api
from nats.js.errors import APIError

from chassis.bus import subjects
from chassis.bus.connection import Connection

WORK_STREAM: Final = "FTF_WORK"
EVENTS_STREAM: Final = "FTF_EVENTS"
NODES_STREAM: Final = f"KV_{subjects.NODES_BUCKET}"
NODE_TTL_SECONDS: Final = 15.0

_OTHER_CONFIGURATION: Final = 10058


async def make_work_stream(connection: Connection) -> str:
    """Creates FTF_WORK if it is missing. Returns its creation time, which identifies it. Raises BusUnavailable."""
    return await _make(
        connection,
        api.StreamConfig(
            name=WORK_STREAM,
            subjects=[f"{subjects.WORK}.>"],
            retention=api.RetentionPolicy.WORK_QUEUE,
            discard=api.DiscardPolicy.NEW,
            discard_new_per_subject=True,
            max_msgs_per_subject=1,
            storage=api.StorageType.FILE,
        ),
    )


async def make_events_stream(connection: Connection) -> None:
    """Creates FTF_EVENTS if it is missing. Raises BusUnavailable."""
    await _make(
        connection,
        api.StreamConfig(
            name=EVENTS_STREAM,
            subjects=[f"{subjects.EVENTS}.>"],
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.OLD,
            max_age=7 * 86_400,
            # The server reserves this much at once, or refuses the stream.
            max_bytes=256 * 1024**2,
            storage=api.StorageType.FILE,
        ),
    )


async def make_nodes_bucket(connection: Connection) -> None:
    """Creates the bucket of nodes if it is missing. Raises BusUnavailable."""
    async with connection.jetstream() as js:
        await js.create_key_value(
            api.KeyValueConfig(
                bucket=subjects.NODES_BUCKET, ttl=NODE_TTL_SECONDS, history=1, storage=api.StorageType.MEMORY
            )
        )


async def _make(connection: Connection, config: api.StreamConfig) -> str:
    async with connection.jetstream() as js:
        try:
            info = await js.add_stream(config)
        except APIError as error:
            if error.err_code != _OTHER_CONFIGURATION:
                raise
            info = await js.update_stream(config)
        return str(info.created)
