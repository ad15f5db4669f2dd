"""A client with several addresses fails over when a gateway is lost."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetuneflow import AsyncClient, Client, FineTuneFlowError, InvalidArgument, ServerUnreachable, connection
from tests.fakes.gateway import JOB, FakeGateway, Running


@pytest.fixture
def other(gateway: FakeGateway) -> Iterator[Running]:
    """A second gateway of the same system: it knows the same job."""
    running = Running(FakeGateway(events=gateway.events))
    running.start()
    yield running
    running.stop()


def all_sequences(gateway: FakeGateway) -> list[int]:
    return list(range(1, len(gateway.events) + 1))


def test_watch_continues_at_other_gateway(gateway: FakeGateway, server: Running, other: Running) -> None:
    """Otherwise a dashboard would restart or stop each time a gateway is replaced."""
    gateway.hold = threading.Event()
    gateway.events, everything = gateway.events[:9], gateway.events
    disconnects: list[Exception] = []
    back: list[int] = []
    sequences: list[int] = []
    with Client(f"{server.address}, {other.address}") as client:
        for event in client.jobs.watch(JOB, on_disconnect=disconnects.append, on_reconnect=lambda: back.append(1)):
            sequences.append(event.sequence)
            if event.sequence == 9:
                server.stop()
    gateway.events = everything
    assert sequences == all_sequences(gateway)
    assert [request.after_sequence for request in other.gateway.requests("WatchFineTuningJob")] == [9]
    assert (len(disconnects), len(back)) == (1, 1)


async def test_async_watch_continues_at_other_gateway(gateway: FakeGateway, server: Running, other: Running) -> None:
    gateway.hold = threading.Event()
    gateway.events, everything = gateway.events[:9], gateway.events
    sequences: list[int] = []
    async with AsyncClient(f"{server.address},{other.address}") as client:
        async for event in client.jobs.watch(JOB):
            sequences.append(event.sequence)
            if event.sequence == 9:
                server.stop()
        assert (await client.jobs.get(JOB)).ended
    gateway.events = everything
    assert sequences == all_sequences(gateway)


def test_calls_stay_at_the_gateway_that_answered(server: Running, other: Running) -> None:
    """A client that tries the dead gateway first would wait on every call."""
    server.stop()
    with Client(f"{server.address},{other.address}") as client:
        for _ in range(3):
            assert client.jobs.get(JOB).id == JOB
        assert len(other.gateway.requests("GetFineTuningJob")) == 3
        server.start()
        other.stop()
        assert client.jobs.get(JOB).id == JOB


def test_many_failed_calls_switch_gateway_once(gateway: FakeGateway, server: Running, other: Running) -> None:
    """If each call switched, two watchers that lose a gateway together would be back at the lost one."""
    gateway.hold = threading.Event()
    with Client(f"{server.address},{other.address}") as client:
        watches = [client.jobs.watch(JOB) for _ in range(4)]
        for events in watches:
            for _ in all_sequences(gateway)[:-1]:
                next(events)
        server.stop()
        other.gateway.calls.clear()
        assert [[event.sequence for event in events] for events in watches] == [all_sequences(gateway)[-1:]] * 4
        assert client.jobs.get(JOB).id == JOB


def test_error_lists_all_addresses_if_none_answers(server: Running, other: Running) -> None:
    server.stop()
    other.stop()
    with (
        Client(f"{server.address},{other.address}") as client,
        pytest.raises(ServerUnreachable, match=f"{server.address},{other.address}"),
    ):
        client.jobs.get(JOB)


def test_list_of_addresses_is_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTF_ADDRESS", "127.0.0.1:1, localhost:2,")
    with Client() as client:
        assert client._connection.addresses == ("127.0.0.1:1", "localhost:2")
    for addresses in ("127.0.0.1:1,nowhere", " , "):
        with pytest.raises(InvalidArgument, match="not a valid address"):
            Client(addresses)
    with pytest.raises(InvalidArgument, match=r"unencrypted to example\.org:443"):
        Client("127.0.0.1:1,example.org:443", token="secret")


@pytest.fixture
def stopped_gateway() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.fakes.gateway_process"]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_client_leaves_a_gateway_that_hangs(
    stopped_gateway: subprocess.Popen[str], server: Running, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suspended machine sends neither FIN nor RST: without pings a watch would wait for ever."""
    names = ("keepalive_time", "keepalive_timeout", "http2.ping_timeout", "min_reconnect_backoff")
    pings: dict[str, int | str] = {f"grpc.{name}_ms": 500 for name in names}
    options = [(name, pings.get(name, value)) for name, value in connection._CHANNEL_OPTIONS]
    assert pings.items() <= dict(options).items(), "the test must use the client's real ping options"
    monkeypatch.setattr(connection, "_CHANNEL_OPTIONS", options)
    assert stopped_gateway.stdout is not None
    address = stopped_gateway.stdout.readline().strip()
    sequences = []
    with Client(f"{address},{server.address}") as client:
        for event in client.jobs.watch(JOB):
            sequences.append(event.sequence)
            if event.sequence == 8:
                stopped_gateway.send_signal(signal.SIGSTOP)
        assert sequences == all_sequences(gateway)
    with Client(f"{address},{server.address}") as client:
        assert client.jobs.get(JOB).id == JOB, "a new client must not wait for it"


def test_closing_the_client_ends_its_watches_with_an_error(gateway: FakeGateway, client: Client) -> None:
    gateway.hold = threading.Event()
    gateway.events = gateway.events[:3]
    events = client.jobs.watch(JOB)
    for _ in gateway.events:
        next(events)
    threading.Timer(0.1, client.close).start()
    with pytest.raises(FineTuneFlowError, match="closed"):
        next(events)
    with pytest.raises(FineTuneFlowError, match="closed"):
        client.jobs.get(JOB)
