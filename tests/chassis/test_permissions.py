"""What stolen credentials of the broker reach."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client

from chassis.bus import subjects
from chassis.bus.event_bus import Bus
from chassis.bus.permissions import user_name
from chassis.security.certificates import CertificateAuthority
from finetuneflow.v1 import fine_tuning_job_pb2, work_pb2
from tests.servers.nats import NatsServer

REPOSITORY = Path(__file__).parents[2]


async def connect(server: NatsServer, service: str, pool: str = "default", *, echo: bool = True) -> Bus:
    user = user_name(service, pool)
    return await Bus.connect(server.url, user, server.password, "test", inbox=subjects.inbox(user), echo=echo)


@pytest.fixture
async def gateway(nats_server: NatsServer) -> AsyncIterator[Bus]:
    bus = await connect(nats_server, "gateway")
    await bus.ensure_streams()
    yield bus
    await bus.close()


def item(job_id: str = "ftjob_a") -> work_pb2.WorkItem:
    return work_pb2.WorkItem(job_id=job_id, stage=fine_tuning_job_pb2.STAGE_TRAINING, attempt=1)


@pytest.mark.parametrize(("service", "pool"), [("probe", "default"), ("trainer", "default"), ("trainer", "gpu")])
async def test_a_worker_pulls_claims_reports_and_announces_itself(
    nats_server: NatsServer, gateway: Bus, service: str, pool: str
) -> None:
    """A permission too few would stop every job of a cluster that has separate users."""
    claims: list[str] = []

    async def claim(subject: str, _: bytes) -> bytes:
        claims.append(subject)
        return work_pb2.ClaimResponse(refused=work_pb2.ClaimRefused(reason="ENDED")).SerializeToString()

    async def report(_subject: str, _: bytes) -> bytes:
        return work_pb2.ReportResponse(next_ordinal=1).SerializeToString()

    await gateway.serve(subjects.claim("*", "*"), "gateways", claim)
    await gateway.serve(subjects.report("*"), "gateways", report)
    worker = await connect(nats_server, service, pool)
    states: asyncio.Queue[str] = asyncio.Queue()
    await worker.subscribe(subjects.event("*", "state_changed"), lambda subject, _: states.put_nowait(subject))
    await gateway.publish_work(service, pool, item())
    message = await worker.work(service, pool).next(10)
    assert message is not None
    await message.hold()
    for everyone in (False, True):
        answer = await worker.request(
            subjects.claim(service, pool), work_pb2.ClaimRequest(), work_pb2.ClaimResponse, 5, everyone=everyone
        )
        assert answer.refused.reason == "ENDED"
        accepted = await worker.request(
            subjects.report("ftjob_a"), work_pb2.ReportRequest(), work_pb2.ReportResponse, 5, everyone=everyone
        )
        assert accepted.next_ordinal == 1
    assert [subjects.claimant(subject) for subject in claims] == [(service, pool)] * 2
    await message.ack()
    assert await worker.work(service, pool).next(0.5) is None
    node = work_pb2.Node(id="node-1", service=service, pool=pool)
    await worker.put_node(node)
    assert await gateway.nodes() == [node]
    await worker.remove_node(service, node.id)
    assert await gateway.nodes() == []
    await gateway.publish(subjects.event("ftjob_a", "state_changed"), b"")
    assert await asyncio.wait_for(states.get(), 5) == subjects.event("ftjob_a", "state_changed")
    assert await gateway.alive(2)
    await worker.close()


PUBLISHED = {
    "claim as another service": subjects.claim("probe", "default"),
    "claim from another pool": subjects.claim("trainer", "gpu"),
    "queue work": subjects.work("trainer", "default", item("ftjob_b")),
    "publish an event of a job": subjects.event("ftjob_a", "log"),
    "announce a false probe": subjects.node("probe", "false"),
    "purge the queue": "$JS.API.STREAM.PURGE.FTF_WORK",
    "delete the queue": "$JS.API.STREAM.DELETE.FTF_WORK",
    "delete a message": "$JS.API.STREAM.MSG.DELETE.FTF_WORK",
    "read a message": "$JS.API.STREAM.MSG.GET.FTF_WORK",
    "read events": "$JS.API.STREAM.MSG.GET.FTF_EVENTS",
    "create a stream": "$JS.API.STREAM.CREATE.MINE",
    "change a stream": "$JS.API.STREAM.UPDATE.FTF_WORK",
    "pull from another pool": "$JS.API.CONSUMER.MSG.NEXT.FTF_WORK.trainer_gpu",
    "pull as another service": "$JS.API.CONSUMER.MSG.NEXT.FTF_WORK.probe_default",
    "make a consumer of everything": "$JS.API.CONSUMER.CREATE.FTF_WORK",
    "change the consumer": (f"$JS.API.CONSUMER.CREATE.FTF_WORK.trainer_default.{subjects.queue('trainer', 'default')}"),
    "make a consumer by the old request": "$JS.API.CONSUMER.DURABLE.CREATE.FTF_WORK.trainer_default",
    "delete the consumer": "$JS.API.CONSUMER.DELETE.FTF_WORK.trainer_default",
    "acknowledge another pool's work": "$JS.ACK.FTF_WORK.trainer_gpu.1.1.1.1.0",
    "answer a gateway": "_INBOX.gateway.abc.def",
}
SUBSCRIBED = {
    "read claims": subjects.claim("*", "*"),
    "read its own pool's claims": subjects.claim("trainer", "default"),
    "read reports": subjects.report("*"),
    "read events": subjects.event("*", "log"),
    "read work": "ftf.v1.work.>",
    "read the gateway's answers": "_INBOX.gateway.>",
    "read another service's answers": "_INBOX.probe.>",
    "read every answer": "_INBOX.>",
    "read everything": ">",
}


class Thief:
    """A plain client with a trainer's credentials."""

    def __init__(self) -> None:
        self.refusals: asyncio.Queue[str] = asyncio.Queue()
        self.client = Client()

    async def connect(self, server: NatsServer) -> None:
        async def on_error(error: Exception) -> None:
            self.refusals.put_nowait(str(error).lower())

        self.client = await nats.connect(
            server.url, user="trainer", password=server.password, inbox_prefix="_INBOX.trainer", error_cb=on_error
        )

    async def refused(self, subject: str) -> None:
        await self.client.flush()
        refusal = await asyncio.wait_for(self.refusals.get(), 5)
        assert "permissions violation" in refusal
        assert subject.lower() in refusal


@pytest.fixture
async def thief(nats_server: NatsServer, gateway: Bus) -> AsyncIterator[Thief]:
    assert gateway.connected
    stolen = Thief()
    await stolen.connect(nats_server)
    yield stolen
    await stolen.client.close()


@pytest.mark.parametrize("attack", PUBLISHED)
async def test_stolen_trainer_credentials_can_not(thief: Thief, attack: str) -> None:
    """One stolen worker would own every job of every pool."""
    await thief.client.publish(PUBLISHED[attack], b"{}")
    await thief.refused(PUBLISHED[attack])


@pytest.mark.parametrize("attack", SUBSCRIBED)
async def test_stolen_trainer_credentials_do_not(thief: Thief, attack: str) -> None:
    """Whoever reads a claim's answer has its claim id, and may fail the job."""
    await thief.client.subscribe(SUBSCRIBED[attack])
    await thief.refused(SUBSCRIBED[attack])


REQUESTS = {
    "a claim": (subjects.claim("trainer", "default"), b"\xff"),
    "a report": (subjects.report("ftjob_a"), b"\xff"),
    "a pull": ("$JS.API.CONSUMER.MSG.NEXT.FTF_WORK.trainer_default", b'{"batch": 1}'),
    # Its answer has no content, which is how a stream is deleted.
    "a pull without work": ("$JS.API.CONSUMER.MSG.NEXT.FTF_WORK.trainer_default", b'{"batch": 9, "no_wait": true}'),
    "a node": (subjects.node("trainer", "x"), b""),
    "an acknowledgement": ("$JS.ACK.FTF_WORK.trainer_default.1.1.1.1.0", b"+NXT"),
}


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize(
    "target", ["$JS.API.STREAM.DELETE.KV_ftf_nodes", subjects.event("ftjob_a", "log"), subjects.node("probe", "false")]
)
async def test_answers_are_not_sent_where_the_thief_may_not_publish(
    nats_server: NatsServer, thief: Thief, gateway: Bus, request_: str, target: str
) -> None:
    """A request names the subject of its answer: that of a gateway or the broker would delete a stream, or fake an
    event."""
    reached: list[bytes] = []

    async def answer(_subject: str, _data: bytes) -> bytes:
        return b""

    await gateway.serve(subjects.claim("*", "*"), "gateways", answer)
    await gateway.serve(subjects.report("*"), "gateways", answer)
    observer = await Bus.connect(nats_server.url, nats_server.user, nats_server.password)
    for watched in (subjects.event("*", "log"), subjects.node("probe", "*")):
        await observer.subscribe(watched, lambda _, data: reached.append(data))
    worker = await connect(nats_server, "trainer")
    await gateway.publish_work("trainer", "default", item("ftjob_a"))
    subject, data = REQUESTS[request_]

    for _ in range(2):
        await thief.client.publish(subject, data, reply=target)
    await thief.client.flush()
    # It is answered after those before it.
    await worker.request(subjects.report("ftjob_b"), work_pb2.ReportRequest(), work_pb2.ReportResponse, 5)
    node = work_pb2.Node(id="node-1", service="trainer")
    await worker.put_node(node)

    assert node in await gateway.nodes()
    assert reached == []
    await worker.close()
    await observer.close()


async def test_nodes_of_a_false_service_are_ignored(thief: Thief, gateway: Bus) -> None:
    """The gateway would send questions, with paths of datasets, to the address of a trainer that says it is a probe."""
    js = thief.client.jetstream()
    for content in (work_pb2.Node(id="x", service="probe", address="h:1").SerializeToString(), b"\xff\xff"):
        await js.publish(subjects.node("trainer", "x"), content)
        assert await gateway.nodes() == []


def test_the_accounts_of_the_compose_file_are_the_real_ones(tmp_path: Path) -> None:
    """A cluster would run with permissions that no test has tried."""
    services = ("probe", "trainer", "evaluator", "exporter")
    program = [sys.executable, "-m", "chassis.bus.permissions", *services]
    made = subprocess.run(program, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
    written = (REPOSITORY / "deploy" / "nats-accounts.conf").read_text()
    assert written.partition("\n")[2] == made
    server = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    assert server
    passwords = {f"NATS_{user.upper()}_PASSWORD": "x" for user in ("gateway", *services)}
    certificates = (
        CertificateAuthority.open(tmp_path / "ca").issue(tmp_path / "certificates", "nats").certificate.parent
    )
    shutil.copytree(REPOSITORY / "deploy", tmp_path / "deploy")
    configuration = tmp_path / "deploy" / "nats.conf"
    configuration.write_text(configuration.read_text().replace("/certificates", str(certificates)))
    subprocess.run([server, "-t", "-c", str(configuration)], env={**os.environ, **passwords}, check=True)
