import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from chassis.errors import DETAILS_KEY, InvalidArgument, NotFound, Violation
from chassis.server.grpc_server import MAX_RECEIVE_BYTES, Mount, Server, serve
from finetuneflow.v1 import evaluator_service_pb2, evaluator_service_pb2_grpc
from finetuneflow.v1.evaluator_service_pb2 import GenerateRequest, GenerateResponse


class JobError(Exception):
    reason = "MODEL_NOT_FOUND"
    message = "There is no model x."
    advice = "Did you mean y?"
    violations = (Violation("spec.base_model", "unknown"),)


class Evaluator(evaluator_service_pb2_grpc.EvaluatorServiceServicer):
    """Sends one message, then does what the model's name says."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def Generate(self, request: GenerateRequest, context: Any) -> AsyncIterator[GenerateResponse]:
        yield GenerateResponse()
        match request.model:
            case "missing":
                raise NotFound("MODEL_NOT_FOUND", "There is no such model.", metadata={"model": "missing"})
            case "invalid":
                raise InvalidArgument("INVALID_CONFIG", "Two fields.", [Violation("a.b", "wrong"), Violation("c", "d")])
            case "domain":
                raise JobError
            case "defect":
                raise KeyError("a secret detail")
            case "endless":
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise


@pytest.fixture
async def evaluator() -> Evaluator:
    return Evaluator()


@pytest.fixture
async def server(evaluator: Evaluator) -> AsyncIterator[Server]:
    name = evaluator_service_pb2.DESCRIPTOR.services_by_name["EvaluatorService"]
    add = evaluator_service_pb2_grpc.add_EvaluatorServiceServicer_to_server
    server = await serve(Mount(name, add, evaluator), listen="127.0.0.1:0")
    yield server
    await server.stop(0)


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield channel


async def final_status(
    channel: grpc.aio.Channel, request: GenerateRequest
) -> tuple[grpc.StatusCode, status_pb2.Status]:
    """The status that ends a stream after its first message."""
    call = evaluator_service_pb2_grpc.EvaluatorServiceStub(channel).Generate(request)
    received = 0
    try:
        async for _ in call:
            received += 1
    except grpc.aio.AioRpcError as error:
        assert received == 1
        details = dict(error.trailing_metadata() or ())[DETAILS_KEY]
        return error.code(), status_pb2.Status.FromString(details)
    raise AssertionError("the stream ended well")


def info(status: status_pb2.Status) -> error_details_pb2.ErrorInfo:
    found = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(found)
    return found


@pytest.mark.parametrize(
    ("model", "code", "reason"),
    [
        ("missing", grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
        ("invalid", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CONFIG"),
        ("domain", grpc.StatusCode.INVALID_ARGUMENT, "MODEL_NOT_FOUND"),
    ],
)
async def test_error_during_stream_keeps_status_and_reason(
    channel: grpc.aio.Channel, model: str, code: grpc.StatusCode, reason: str
) -> None:
    """Clients branch on the reason; UNKNOWN would be useless."""
    found, status = await final_status(channel, GenerateRequest(model=model))
    assert found is code
    assert info(status).reason == reason
    assert info(status).domain == "finetuneflow"


async def test_error_lists_all_invalid_fields(channel: grpc.aio.Channel) -> None:
    _, status = await final_status(channel, GenerateRequest(model="invalid"))
    bad = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad)
    assert [(v.field, v.description) for v in bad.field_violations] == [("a.b", "wrong"), ("c", "d")]


async def test_unexpected_exception_is_logged_with_id_and_hidden_from_caller(
    channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        code, status = await final_status(channel, GenerateRequest(model="defect"))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in status.message
    (logged,) = [entry for entry in caplog.records if entry.name == "chassis.server.grpc_server"]
    assert info(status).metadata["incident"] in logged.getMessage()
    assert logged.exc_info
    assert logged.exc_info[0] is KeyError


async def test_cancelled_call_ends_its_handler(channel: grpc.aio.Channel, evaluator: Evaluator) -> None:
    """A handler that outlives its client is a leak."""
    call = evaluator_service_pb2_grpc.EvaluatorServiceStub(channel).Generate(GenerateRequest(model="endless"))
    await call.read()
    call.cancel()
    await asyncio.wait_for(evaluator.cancelled.wait(), 60)


async def test_method_without_handler_is_unimplemented() -> None:
    """An empty success would be taken for a result."""
    descriptor = evaluator_service_pb2.DESCRIPTOR.services_by_name["EvaluatorService"]
    add = evaluator_service_pb2_grpc.add_EvaluatorServiceServicer_to_server
    server = await serve(
        Mount(descriptor, add, evaluator_service_pb2_grpc.EvaluatorServiceServicer()), listen="127.0.0.1:0"
    )
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = evaluator_service_pb2_grpc.EvaluatorServiceStub(channel).Generate(GenerateRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    await server.stop(0)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata() or ())[DETAILS_KEY])
    assert info(status).reason == "METHOD_NOT_IMPLEMENTED"


async def test_oversized_message_is_refused_and_server_continues(channel: grpc.aio.Channel) -> None:
    stub = evaluator_service_pb2_grpc.EvaluatorServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(GenerateRequest(model="x" * (MAX_RECEIVE_BYTES + 1))).read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert isinstance(await stub.Generate(GenerateRequest(model="fine")).read(), GenerateResponse)


async def test_health_and_reflection_are_served(server: Server, channel: grpc.aio.Channel) -> None:
    """Orchestrators and grpcurl depend on them."""
    name = "finetuneflow.v1.EvaluatorService"
    health = health_pb2_grpc.HealthStub(channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watch = health.Watch(health_pb2.HealthCheckRequest(service=name))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    await server.set_serving(False)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    services = [service.name for service in (await listing.read()).list_services_response.service]
    assert {name, "grpc.health.v1.Health"} <= set(services)


async def test_port_in_use_is_an_error(server: Server) -> None:
    """Two servers on one port would each receive half of the calls."""
    with pytest.raises(OSError, match="cannot listen"):
        await serve(listen=server.address)
