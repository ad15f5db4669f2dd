"""JetStream streams of this system: names, subjects and configuration."""

from __future__ import annotations

from typing import Final

from nats.js import api
from nats.js.errors import APIError, NotFoundError

from chassis.bus import subjects
from chassis.bus.connection import BusUnavailable, Connection, NoStream

WORK_STREAM: Final = "FTF_WORK"
EVENTS_STREAM: Final = "FTF_EVENTS"
NODES_STREAM: Final = f"KV_{subjects.NODES_BUCKET}"
NODE_TTL_SECONDS: Final = 15.0

_ACK_WAIT_SECONDS: Final = 15.0
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


async def make_consumer(connection: Connection, service: str, pool: str) -> None:
    """Creates the consumer from which the processes of a pool pull, if it is missing.

    Raises BusUnavailable, and NoStream if there is no FTF_WORK.
    """
    name = subjects.consumer(service, pool)
    config = api.ConsumerConfig(
        name=name,
        durable_name=name,
        filter_subject=subjects.queue(service, pool),
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=_ACK_WAIT_SECONDS,
        max_deliver=-1,
        max_ack_pending=10_000,
    )
    async with connection.jetstream() as js:
        try:
            await js.add_consumer(WORK_STREAM, config)
        except NotFoundError as error:
            raise NoStream("FTF_WORK does not exist") from error
        except ValueError as error:
            raise BusUnavailable(f"there can be no queue of {service} {pool!r}: {error}") from error


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
