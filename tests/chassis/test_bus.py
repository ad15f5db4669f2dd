import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import nats
import pytest
from nats.aio.client import Client

from chassis.bus.event_bus import Bus, BusRefused, BusUnavailable
from chassis.security.certificates import CertificateAuthority
from chassis.security.identity import Identity
from finetuneflow.v1 import fine_tuning_job_pb2, work_pb2
from tests.servers.nats import NatsServer

T = TypeVar("T")


def item(attempt: int = 1, job: str = "ftjob_a") -> work_pb2.WorkItem:
    return work_pb2.WorkItem(job_id=job, stage=fine_tuning_job_pb2.STAGE_TRAINING, attempt=attempt)


async def retry_until_broker_is_back(call: Callable[[], Awaitable[T]]) -> T:
    """Repeats a call, as every caller of the bus does."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await call()
            except BusUnavailable:
                await asyncio.sleep(0.05)


async def connect(server: NatsServer) -> Bus:
    return await Bus.connect(server.url, server.user, server.password, "test")


async def test_item_is_queued_once_and_redelivered_after_nak(bus: Bus) -> None:
    """Dispatching every READY attempt again must not run anything twice, and a worker may return work."""
    assert await bus.ensure_streams()
    assert not await bus.ensure_streams()
    queue = bus.work("trainer", "default")
    await bus.publish_work("trainer", "default", item())
    await bus.publish_work("trainer", "default", item())
    first = await queue.next(5)
    assert first
    assert first.item == item()
    await bus.publish_work("trainer", "default", item())
    await first.nak(0.05)
    second = await queue.next(5)
    assert second
    await second.ack()
    assert await queue.next(0.3) is None
    await bus.publish_work("trainer", "default", item())
    again = await queue.next(5)
    assert again
    await again.ack()


async def test_work_is_separate_per_pool_and_service(bus: Bus) -> None:
    await bus.publish_work("trainer", "gpu", item())
    assert await bus.work("trainer", "cpu").next(0.3) is None
    assert await bus.work("probe", "gpu").next(0.3) is None
    found = await bus.work("trainer", "gpu").next(5)
    assert found


async def test_streams_can_be_created_concurrently(nats_server: NatsServer) -> None:
    """All five processes start together."""
    buses = [await connect(nats_server) for _ in range(4)]
    assert await asyncio.gather(*(bus.ensure_streams() for bus in buses)) == [True] * 4
    assert await asyncio.gather(*(bus.ensure_streams() for bus in buses)) == [False] * 4
    for bus in buses:
        await bus.close()


async def test_work_is_delivered_when_event_stream_does_not_fit(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A small disk would otherwise stop all work without an error."""
    nats_server.stop()
    config = nats_server._config
    config.write_text(config.read_text().replace("max_file_store: 4GB", "max_file_store: 100MB"))
    nats_server.start()
    bus = await connect(nats_server)
    queue = bus.work("trainer", "default")
    assert await queue.next(0.3) is None
    assert await bus.ensure_streams()
    assert not await bus.ensure_streams()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "FTF_EVENTS could not be created" in warning
    assert "insufficient storage" in warning
    await bus.publish_work("trainer", "default", item())
    assert await queue.next(5)
    await bus.put_node(work_pb2.Node(id="a-1", service="probe"))
    await bus.close()


async def test_every_gateway_detects_recreated_work_stream(bus: Bus, nats_server: NatsServer) -> None:
    """Otherwise, if another gateway recreated the stream, READY jobs would wait half a minute to be published again."""
    await bus.ensure_streams()
    await asyncio.to_thread(nats_server.wipe)
    await retry_until_broker_is_back(lambda: bus.publish_work("probe", "default", item()))
    assert await bus.ensure_streams()
    await asyncio.to_thread(nats_server.restart)
    assert not await retry_until_broker_is_back(bus.ensure_streams)


@pytest.mark.parametrize("outage", ["restart", "wipe"])
async def test_waiting_worker_receives_work_after_broker_restart(
    bus: Bus, nats_server: NatsServer, outage: str
) -> None:
    """Otherwise a worker would look alive and never receive a job again."""
    queue = bus.work("trainer", "default")
    assert await queue.next(0.3) is None
    waiting = asyncio.create_task(queue.next(60))
    await asyncio.sleep(0)
    await asyncio.to_thread(getattr(nats_server, outage))
    await retry_until_broker_is_back(lambda: bus.publish_work("trainer", "default", item()))
    found = await asyncio.wait_for(waiting, 20)
    assert found
    assert found.item == item()


async def test_every_failed_request_raises_bus_unavailable(bus: Bus, nats_server: NatsServer) -> None:
    """Workers spool on BusUnavailable; any other error would end them."""
    ask = work_pb2.ClaimRequest(job_id="j")

    async def answer(_subject: str, data: bytes) -> bytes:
        request = work_pb2.ClaimRequest.FromString(data)
        if request.job_id == "bad":
            raise RuntimeError("a defect")
        if request.job_id == "slow":
            await asyncio.Event().wait()
        return work_pb2.ClaimResponse(refused=work_pb2.ClaimRefused(reason="ENDED")).SerializeToString()

    with pytest.raises(BusUnavailable):
        await bus.request("ftf.v1.claim", ask, work_pb2.ClaimResponse, 2)
    served = await bus.serve("ftf.v1.claim", "gateways", answer)
    response = await bus.request("ftf.v1.claim", ask, work_pb2.ClaimResponse, 2)
    assert response.refused.reason == "ENDED"
    with pytest.raises(BusUnavailable):
        await bus.request("ftf.v1.claim", work_pb2.ClaimRequest(job_id="bad"), work_pb2.ClaimResponse, 30)
    with pytest.raises(BusUnavailable):
        await bus.request("ftf.v1.claim", work_pb2.ClaimRequest(job_id="slow"), work_pb2.ClaimResponse, 0.2)
    for task in served.running:
        task.cancel()
    await asyncio.to_thread(nats_server.stop)
    with pytest.raises(BusUnavailable):
        await bus.request("ftf.v1.claim", ask, work_pb2.ClaimResponse, 0.5)
    await asyncio.to_thread(nats_server.start)
    await retry_until_broker_is_back(lambda: bus.request("ftf.v1.claim", ask, work_pb2.ClaimResponse, 2))


async def test_process_can_start_before_its_broker(nats_server: NatsServer) -> None:
    """Machines start in any order."""
    nats_server.stop()
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "early", wait_seconds=0.1)
    received: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    await bus.subscribe("ftf.v1.jobs.*.log", lambda subject, data: received.put_nowait((subject, data)))
    assert not bus.connected
    nats_server.start()
    await retry_until_broker_is_back(lambda: bus.publish("ftf.v1.jobs.j.log", b"x"))
    assert await asyncio.wait_for(received.get(), 5) == ("ftf.v1.jobs.j.log", b"x")
    await bus.close()


async def test_connection_that_breaks_during_setup_is_retried(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the process would look alive and never receive messages."""
    nats_server.stop()
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "early", wait_seconds=0.1)
    received: asyncio.Queue[bytes] = asyncio.Queue()
    handlers = await bus.subscribe("ftf.v1.jobs.*.log", lambda _, data: received.put_nowait(data))
    attach, failures = handlers.attach, [nats.errors.ConnectionClosedError(), OSError("reset")]

    async def breaking(client: Client) -> None:
        if failures:
            raise failures.pop()
        await attach(client)

    monkeypatch.setattr(handlers, "attach", breaking)
    nats_server.start()
    await retry_until_broker_is_back(lambda: bus.publish("ftf.v1.jobs.j.log", b"x"))
    assert await asyncio.wait_for(received.get(), 5) == b"x"
    assert not failures
    await bus.close()


async def test_wrong_credentials_fail_at_once(nats_server: NatsServer) -> None:
    with pytest.raises(BusRefused):
        await Bus.connect(nats_server.url, "ftf", "wrong", "intruder")


async def test_loop_on_bus_can_be_cancelled(bus: Bus) -> None:
    """The NATS client swallows cancellations at certain points: gateways and workers could not be shut down."""

    async def loop() -> None:
        while True:
            with contextlib.suppress(BusUnavailable):
                await bus.ensure_streams()
                await bus.publish("ftf.v1.jobs.j.log", b"x" * 100_000)

    for turns in range(200):
        task = asyncio.create_task(loop())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        assert task.cancelled()


async def test_nodes_are_published_removed_and_restored_after_data_loss(bus: Bus, nats_server: NatsServer) -> None:
    assert await bus.nodes() == []
    await bus.ensure_streams()
    one, two = work_pb2.Node(id="a-1", service="probe", address="h:1"), work_pb2.Node(id="b-2", service="trainer")
    await bus.put_node(two)
    await bus.put_node(one)
    assert await bus.nodes() == [one, two]
    await bus.remove_node("trainer", "b-2")
    assert await bus.nodes() == [one]
    await asyncio.to_thread(nats_server.wipe)
    await retry_until_broker_is_back(bus.ensure_streams)
    await bus.put_node(one)
    assert await bus.nodes() == [one]


async def test_password_is_not_sent_to_a_server_without_tls(tmp_path: Path) -> None:
    """Whoever takes the broker's port or its place in the network could otherwise ask for a plain connection."""
    received = bytearray()
    connected, done = asyncio.Event(), asyncio.Event()

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","proto":1,"max_payload":1048576}\r\n')
        with contextlib.suppress(OSError):
            while data := await reader.read(4096):
                received.extend(data)
                connected.set()
        writer.close()
        done.set()

    server = await asyncio.start_server(impostor, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    files = CertificateAuthority.open(tmp_path / "ca").issue(tmp_path / "gateway", "gateway")
    tls = Identity(files).client_context()
    bus = await Bus.connect(f"nats://127.0.0.1:{port}", "gateway", "the-password", "test", wait_seconds=0, tls=tls)
    async with asyncio.timeout(30):
        await connected.wait()
        await done.wait()
    assert not bus.connected
    await bus.close()
    server.close()
    assert received.startswith(b"\x16\x03"), "the first bytes are no TLS handshake"
    assert b"the-password" not in received


@pytest.mark.parametrize("impostor", ["another process of the system", "another authority"])
async def test_broker_shows_a_certificate_of_its_host(tmp_path: Path, impostor: str) -> None:
    """A stolen trainer's certificate must not be enough to collect the passwords of the others."""
    authority = CertificateAuthority.open(tmp_path / "ca")
    own = authority.issue(tmp_path / "gateway", "gateway")
    shown = authority.issue(tmp_path / "trainer", "trainer")
    if impostor == "another authority":
        shown = CertificateAuthority.open(tmp_path / "other").issue(tmp_path / "nats", "nats", ["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown.certificate, shown.key)
    accepted = asyncio.Event()
    # Called once a client has accepted the certificate.
    server = await asyncio.start_server(lambda _reader, _writer: accepted.set(), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    tls = Identity(own).client_context()
    bus = await Bus.connect(f"nats://127.0.0.1:{port}", "gateway", "the-password", "test", wait_seconds=1, tls=tls)
    assert not accepted.is_set()
    assert not bus.connected
    await bus.close()
    server.close()
