"""EvaluatorService as the gateway serves it: passed through to an evaluator."""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from finetuneflow.v1 import evaluator_service_pb2 as api
from finetuneflow.v1.evaluator_service_pb2_grpc import EvaluatorServiceServicer, EvaluatorServiceStub
from gateway.passthrough import Passthrough

Context = grpc.aio.ServicerContext[Any, Any]


class Generation(EvaluatorServiceServicer):
    """Served by the gateway."""

    def __init__(self, passthrough: Passthrough) -> None:
        self._passthrough = passthrough

    async def Generate(self, request: api.GenerateRequest, context: Context) -> AsyncIterator[api.GenerateResponse]:
        answers = self._passthrough.stream(
            "evaluator", lambda channel: EvaluatorServiceStub(channel).Generate, request, context
        )
        async for answer in answers:
            yield answer
