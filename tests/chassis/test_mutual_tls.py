"""The server of a service with certificates: who may connect, who may call, and renewal while it runs."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from chassis.errors import DETAILS_KEY
from chassis.security import certificates
from chassis.security.certificates import CertificateAuthority, CertificateFiles
from chassis.security.identity import Identity
from chassis.server.grpc_server import Mount, Server, serve
from chassis.server.peer_identity import PeerInterceptor
from finetuneflow.v1 import (
    evaluator_service_pb2,
    evaluator_service_pb2_grpc,
    trainer_service_pb2,
    trainer_service_pb2_grpc,
)
from finetuneflow.v1.evaluator_service_pb2 import GenerateRequest, GenerateResponse


class Trainer(trainer_service_pb2_grpc.TrainerServiceServicer):
    def __init__(self) -> None:
        self.drained = False

    async def DrainTrainer(self, request: Any, context: Any) -> trainer_service_pb2.DrainTrainerResponse:
        self.drained = True
        return trainer_service_pb2.DrainTrainerResponse()


class Evaluator(evaluator_service_pb2_grpc.EvaluatorServiceServicer):
    """Generates for ever, and says when its generator was closed."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[GenerateResponse]:
        try:
            while True:
                yield GenerateResponse(text="x" * 100_000)
        finally:
            # Takes a moment, as ending a child does.
            await asyncio.sleep(0)
            self.closed.set()


class System:
    """An authority, and a server with the certificate `trainer`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = CertificateAuthority.open(folder / "ca")
        self.trainer, self.evaluator = Trainer(), Evaluator()
        self.server: Server

    def files(self, name: str) -> CertificateFiles:
        return self.authority.issue(self.folder / name, name)

    async def start(self) -> None:
        trainer = trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"]
        evaluator = evaluator_service_pb2.DESCRIPTOR.services_by_name["EvaluatorService"]
        self.server = await serve(
            Mount(trainer, trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server, self.trainer),
            Mount(evaluator, evaluator_service_pb2_grpc.add_EvaluatorServiceServicer_to_server, self.evaluator),
            listen="127.0.0.1:0",
            interceptors=[PeerInterceptor()],
            credentials=Identity(self.files("trainer")).server_credentials(),
        )

    def channel(self, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(self.server.address)
        # Otherwise a new channel takes the connection that an earlier one has made.
        options = [("grpc.ssl_target_name_override", "trainer"), ("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(self.server.address, credentials, options=options)

    async def drain(self, credentials: grpc.ChannelCredentials | None) -> str:
        """Calls DrainTrainer; returns the reason of a refusal, otherwise the status."""
        async with self.channel(credentials) as channel:
            stub = trainer_service_pb2_grpc.TrainerServiceStub(channel)
            try:
                await stub.DrainTrainer(trainer_service_pb2.DrainTrainerRequest(), timeout=30)
            except grpc.aio.AioRpcError as error:
                return reason_of(error) or error.code().name
        return "OK"


def reason_of(error: grpc.aio.AioRpcError) -> str:
    trailing: Any = error.trailing_metadata() or ()
    status = status_pb2.Status.FromString(dict(tuple(pair) for pair in trailing).get(DETAILS_KEY, b""))
    info = error_details_pb2.ErrorInfo()
    return info.reason if any(detail.Unpack(info) for detail in status.details) else ""


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    system = System(tmp_path)
    await system.start()
    yield system
    await system.server.stop(0)


async def test_strangers_cannot_connect(system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody on the machine could otherwise drain a trainer."""
    root = system.files("gateway").authority.read_bytes()
    foreign = CertificateAuthority.open(tmp_path / "foreign").issue(tmp_path / "foreign" / "gateway", "gateway")
    with monkeypatch.context() as past:
        past.setattr(certificates, "_CERTIFICATE_DAYS", 0)
        expired = system.authority.issue(tmp_path / "expired", "gateway")
    assert x509.load_pem_x509_certificate(expired.certificate.read_bytes()).not_valid_after_utc <= datetime.now(UTC)

    def with_certificate(files: CertificateFiles) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(root, files.key.read_bytes(), files.certificate.read_bytes())

    assert await system.drain(None) == "UNAVAILABLE"
    assert await system.drain(grpc.ssl_channel_credentials(root)) == "UNAVAILABLE", "without a certificate"
    assert await system.drain(with_certificate(foreign)) == "UNAVAILABLE", "of another authority"
    assert await system.drain(with_certificate(expired)) == "UNAVAILABLE", "expired"
    assert not system.trainer.drained
    assert await system.drain(Identity(system.files("gateway")).channel_credentials()) == "OK"


@pytest.mark.parametrize("name", ["trainer", "probe", "nats"])
async def test_other_process_may_ask_for_health_alone(system: System, name: str) -> None:
    """With the key of one stolen certificate, an intruder would otherwise reach every service."""
    credentials = Identity(system.files(name)).channel_credentials()
    assert await system.drain(credentials) == "SERVICES_ONLY"
    assert not system.trainer.drained
    async with system.channel(credentials) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(request, timeout=30)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert reason_of(refused.value) == "SERVICES_ONLY"
        generate = evaluator_service_pb2_grpc.EvaluatorServiceStub(channel).Generate(GenerateRequest(), timeout=30)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await generate.read()
        assert reason_of(refused.value) == "SERVICES_ONLY"


async def test_cancelled_stream_closes_its_handler(system: System) -> None:
    """An evaluator would otherwise generate for callers that have left."""
    async with system.channel(Identity(system.files("gateway")).channel_credentials()) as channel:
        call = evaluator_service_pb2_grpc.EvaluatorServiceStub(channel).Generate(GenerateRequest())
        await call.read()
        call.cancel()
        await asyncio.wait_for(system.evaluator.closed.wait(), 30)


async def test_renewed_certificate_is_served_without_restart(system: System) -> None:
    """A service would otherwise need a restart before its certificate ends, in the middle of a training."""
    gateway = system.files("gateway")
    assert await system.drain(Identity(gateway).channel_credentials()) == "OK"
    # Another authority for all: only a server that has read its files again accepts its certificates.
    system.authority = CertificateAuthority.open(system.folder / "next" / "ca")
    credentials = Identity(system.files("gateway")).channel_credentials()
    assert await system.drain(credentials) == "UNAVAILABLE"
    system.files("trainer")
    assert await system.drain(credentials) == "OK"


async def test_broken_renewal_keeps_the_old_certificate_and_is_logged_once(
    system: System, caplog: pytest.LogCaptureFixture
) -> None:
    """A half-copied pair must not stop the service, and strangers who connect must not fill its log."""
    credentials = Identity(system.files("gateway")).channel_credentials()
    own = system.files("trainer")
    right = own.key.read_bytes()
    own.key.write_bytes(system.files("gateway").key.read_bytes())
    with caplog.at_level(logging.ERROR, "chassis.security.identity"):
        for _ in range(3):
            assert await system.drain(credentials) == "OK"
        assert [entry.getMessage().count("the old one stays") for entry in caplog.records] == [1]
        own.key.unlink()
        for _ in range(2):
            assert await system.drain(credentials) == "OK"
        assert len(caplog.records) == 2
    own.key.write_bytes(right)
    assert await system.drain(credentials) == "OK"


def test_server_does_not_start_with_a_pair_that_does_not_match(tmp_path: Path) -> None:
    authority = CertificateAuthority.open(tmp_path / "ca")
    one, two = authority.issue(tmp_path / "one", "probe"), authority.issue(tmp_path / "two", "probe")
    mixed = CertificateFiles(one.certificate, two.key, one.authority)
    with pytest.raises(ValueError, match="not a certificate and its key"):
        Identity(mixed).server_credentials()
