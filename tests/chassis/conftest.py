from collections.abc import AsyncIterator

import pytest

from chassis.bus import Bus
from tests.nats import NatsServer


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    """A connection to the running server."""
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "test")
    yield bus
    await bus.close()
