"""Publishes the state of a process in the bucket `ftf_nodes`. Information only: nothing correct depends on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from chassis.bus.event_bus import Bus, BusUnavailable
from finetuneflow.v1 import work_pb2

_log = logging.getLogger(__name__)

HEARTBEAT_SECONDS: Final = 5.0
_FIRST_SECONDS: Final = 0.25


class NodeHeartbeat:
    """Publishes `describe()` every 5 s until `stop`, which removes the entry."""

    def __init__(self, bus: Bus, describe: Callable[[], work_pb2.Node]) -> None:
        self._bus = bus
        self._describe = describe
        self._task: asyncio.Task[None] | None = None
        self.announced = asyncio.Event()
        """Set once the node is published: a gateway may have to create the bucket first."""

    def start(self) -> None:
        """Starts publishing in the background."""
        self._task = asyncio.create_task(self._run(), name="node")

    async def announce(self) -> None:
        """Publishes a change without waiting for the next beat."""
        try:
            await self._bus.put_node(self._describe())
        except BusUnavailable as error:
            _log.debug("the node could not be announced: %s", error)
        else:
            self.announced.set()

    async def stop(self) -> None:
        """Stops publishing and removes the entry, so that others need not wait until it expires."""
        if self._task:
            self._task.cancel()
            await asyncio.wait({self._task})
        with contextlib.suppress(BusUnavailable):
            node = self._describe()
            await self._bus.remove_node(node.service, node.id)

    async def _run(self) -> None:
        while True:
            await self.announce()
            await asyncio.sleep(HEARTBEAT_SECONDS if self.announced.is_set() else _FIRST_SECONDS)
