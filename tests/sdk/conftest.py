"""A fake gateway on a real port, and a client of it."""

from collections.abc import Iterator

import pytest

from finetuneflow import Client
from tests.fakes.gateway import FakeGateway, Running


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def server(gateway: FakeGateway) -> Iterator[Running]:
    running = Running(gateway)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def client(server: Running) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client
