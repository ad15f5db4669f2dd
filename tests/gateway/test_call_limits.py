"""A gateway limits what its callers may hold and how often they call, and says which limit was reached."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from finetuneflow.v1 import (
    artifact_service_pb2,
    dataset_service_pb2,
    evaluation_service_pb2,
    evaluator_service_pb2,
    export_service_pb2,
    fine_tuning_service_pb2,
)
from finetuneflow.v1.access_pb2 import Role
from finetuneflow.v1.dataset_service_pb2_grpc import (
    DatasetServiceServicer,
    DatasetServiceStub,
    add_DatasetServiceServicer_to_server,
)
from gateway.access.call_limits import CallLimitInterceptor, CallLimits
from gateway.access.callers import Caller, current
from tests.gateway.serving import refusal, serving
from tests.gateway.test_two_gateways import Replica, creation
from tests.servers.nats import NatsServer

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
Upload = dataset_service_pb2.UploadDatasetRequest


async def header_and_silence() -> AsyncIterator[Upload]:
    yield Upload(header=dataset_service_pb2.UploadDatasetHeader(filename="rows.jsonl"))
    await asyncio.Event().wait()


@pytest.fixture
async def gateway(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Replica]]]:
    started: list[Replica] = []

    async def start(**settings: str) -> Replica:
        started.append(Replica("a", f"sqlite:///{tmp_path / 'gateway.sqlite'}", nats_server, tmp_path, **settings))
        async with asyncio.timeout(60):
            await started[-1].channel.channel_ready()
        return started[-1]

    yield start
    for replica in started:
        await replica.close()


async def test_upload_that_nobody_feeds_frees_its_slot(gateway: Callable[..., Awaitable[Replica]]) -> None:
    """Idle uploads would otherwise keep everybody's uploads out, without limit."""
    replica = await gateway(max_uploads="1", upload_stall_seconds="1.5")
    stub: Any = DatasetServiceStub(replica.channel)
    idle = asyncio.ensure_future(refusal(stub.UploadDataset(header_and_silence())))
    async with asyncio.timeout(20):
        # It is refused for its missing header if it arrives before the idle one.
        while (found := await refusal(stub.UploadDataset(iter([])))).reason == "HEADER_EXPECTED":
            pass
    assert (found.code, found.reason, found.metadata["limit"]) == (EXHAUSTED, "TOO_MANY_UPLOADS", "1")
    ended = await asyncio.wait_for(idle, 20)
    assert (ended.code, ended.reason) == (grpc.StatusCode.UNAVAILABLE, "UPLOAD_STALLED")
    assert "1.5 seconds" in ended.message
    rows = [
        Upload(header=dataset_service_pb2.UploadDatasetHeader(filename="rows.jsonl")),
        Upload(chunk=b'{"question": "q", "answer": "a"}\n'),
    ]
    assert (await stub.UploadDataset(iter(rows))).dataset.id


async def test_watches_beyond_the_limit_are_refused(gateway: Callable[..., Awaitable[Replica]]) -> None:
    replica = await gateway(max_watches="1")
    data: Any = DatasetServiceStub(replica.channel)
    header = Upload(header=dataset_service_pb2.UploadDatasetHeader(filename="rows.jsonl"))
    dataset = (await data.UploadDataset(iter([header, Upload(chunk=b'{"text": "a"}\n')]))).dataset
    request = creation("one")
    request.spec.training_data[0].dataset = dataset.id
    job_id = (await replica.stub.CreateFineTuningJob(request)).fine_tuning_job.id
    watching = fine_tuning_service_pb2.WatchFineTuningJobRequest(job_id=job_id)
    first = replica.stub.WatchFineTuningJob(watching)
    await first.read()
    second = await refusal(anext(aiter(replica.stub.WatchFineTuningJob(watching))))
    assert (second.code, second.reason, second.metadata["limit"]) == (EXHAUSTED, "TOO_MANY_WATCHES", "1")
    first.cancel()

    async def watch_again() -> None:
        while True:
            try:
                await anext(aiter(replica.stub.WatchFineTuningJob(watching)))
                return
            except grpc.aio.AioRpcError as error:
                assert error.code() is EXHAUSTED

    await asyncio.wait_for(watch_again(), 20)


async def test_message_above_the_limit_is_refused_and_an_old_connection_closed(
    gateway: Callable[..., Awaitable[Replica]],
) -> None:
    replica = await gateway(max_message_bytes=str(2 << 20), connection_age_seconds="1", connection_grace_seconds="1")
    request = creation("x" * (3 << 20))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await replica.stub.CreateFineTuningJob(request)
    assert error.value.code() is EXHAUSTED
    assert str(2 << 20) in (error.value.details() or "")
    # The connection ends during this call, which is then told so.
    stub: Any = DatasetServiceStub(replica.channel)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await asyncio.wait_for(stub.UploadDataset(header_and_silence()), 30)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE


class Hanging(DatasetServiceServicer):
    """Answers when it is released."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.entered = asyncio.Event()

    async def _answer(self, answer: Any) -> Any:
        self.entered.set()
        await self.release.wait()
        return answer

    async def PreviewDataset(self, request: Any, context: Any) -> Any:
        return await self._answer(dataset_service_pb2.PreviewDatasetResponse())

    async def UploadDataset(self, request_iterator: Any, context: Any) -> Any:
        return await self._answer(dataset_service_pb2.UploadDatasetResponse())

    async def GetDataset(self, request: Any, context: Any) -> Any:
        return dataset_service_pb2.GetDatasetResponse()


class CallerFromMetadata(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in the stubs only
    """Sets the caller that the metadata names."""

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        metadata = dict(handler_call_details.invocation_metadata)
        current.set(Caller(metadata["tenant"], Role.ROLE_MEMBER, metadata["tenant"]))
        return await continuation(handler_call_details)


class Served:
    def __init__(self, channel: grpc.aio.Channel, servicer: Hanging) -> None:
        self.stub: Any = DatasetServiceStub(channel)
        self.servicer = servicer


@pytest.fixture
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """A server with the limits that the test is parametrized with."""
    servicer = Hanging()
    interceptors = [CallerFromMetadata(), CallLimitInterceptor(request.param)]
    async with (
        serving(
            dataset_service_pb2, "DatasetService", add_DatasetServiceServicer_to_server, servicer, interceptors
        ) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Served(channel, servicer)
        servicer.release.set()


@pytest.mark.parametrize("served", [CallLimits(max_questions=2)], indirect=True)
async def test_questions_beyond_the_limit_are_refused_and_other_calls_are_not(served: Served) -> None:
    """Estimates and answers of many callers would otherwise occupy every probe and evaluator, and those of one tenant
    would keep out all others."""

    async def ask(tenant: str) -> asyncio.Future[Any]:
        served.servicer.entered.clear()
        call = served.stub.PreviewDataset(dataset_service_pb2.PreviewDatasetRequest(), metadata=(("tenant", tenant),))
        pending = asyncio.ensure_future(call)
        await asyncio.wait_for(served.servicer.entered.wait(), 10)
        return pending

    pending = [await ask("a"), await ask("a"), await ask("b")]
    for tenant in ("a", "b"):
        metadata = (("tenant", tenant),)
        found = await refusal(
            served.stub.PreviewDataset(dataset_service_pb2.PreviewDatasetRequest(), metadata=metadata)
        )
        assert (found.code, found.reason) == (EXHAUSTED, "TOO_MANY_QUESTIONS")
        assert (found.metadata["limit"], found.metadata["share"], found.metadata["tenant"]) == ("2", "1", tenant)
        await served.stub.GetDataset(dataset_service_pb2.GetDatasetRequest(), metadata=metadata)
    served.servicer.release.set()
    await asyncio.gather(*pending)
    await asyncio.gather(await ask("b"), await ask("b"))


@pytest.mark.parametrize("served", [CallLimits(max_uploads=2, max_uploads_per_tenant=1)], indirect=True)
async def test_one_tenant_does_not_use_up_the_uploads_of_all(served: Served) -> None:
    def upload(tenant: str) -> Any:
        return served.stub.UploadDataset(header_and_silence(), metadata=(("tenant", tenant),))

    calls = [upload("a")]
    await asyncio.wait_for(served.servicer.entered.wait(), 10)
    found = await refusal(upload("a"))
    assert (found.code, found.reason, found.metadata["limit"]) == (EXHAUSTED, "TOO_MANY_UPLOADS", "1")
    served.servicer.entered.clear()
    calls.append(upload("b"))
    await asyncio.wait_for(served.servicer.entered.wait(), 10)
    found = await refusal(upload("c"))
    assert (found.reason, found.metadata["limit"]) == ("TOO_MANY_UPLOADS", "2")
    served.servicer.release.set()
    for call in calls:
        await call


@pytest.mark.parametrize("served", [CallLimits(calls_per_second=0.001, call_burst=3)], indirect=True)
async def test_caller_that_calls_too_often_is_refused_and_another_is_not(served: Served) -> None:
    """A loop in one client would otherwise take the gateway's time from everybody."""
    request = dataset_service_pb2.GetDatasetRequest()
    for _ in range(3):
        await served.stub.GetDataset(request, metadata=(("tenant", "a"),))
    found = await refusal(served.stub.GetDataset(request, metadata=(("tenant", "a"),)))
    assert (found.code, found.reason) == (EXHAUSTED, "TOO_MANY_CALLS")
    await served.stub.GetDataset(request, metadata=(("tenant", "b"),))


def test_every_stream_of_the_gateway_has_a_limit() -> None:
    """A new streaming method without one could be called without limit."""
    modules = (
        artifact_service_pb2,
        dataset_service_pb2,
        evaluation_service_pb2,
        evaluator_service_pb2,
        export_service_pb2,
        fine_tuning_service_pb2,
    )
    streams = {
        method.name
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.client_streaming or method.server_streaming
    }
    assert streams <= set(CallLimitInterceptor(CallLimits()).kinds)
