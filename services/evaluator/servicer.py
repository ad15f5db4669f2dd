"""Serves `EvaluatorService`."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from finetuneflow.v1 import evaluator_service_pb2, evaluator_service_pb2_grpc
from services.evaluator.residency import Residency


class EvaluatorServicer(evaluator_service_pb2_grpc.EvaluatorServiceServicer):
    """Answers with the models of this process."""

    def __init__(self, residency: Residency) -> None:
        self._residency = residency

    async def Generate(
        self, request: evaluator_service_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[evaluator_service_pb2.GenerateResponse]:
        """INVALID_ARGUMENT without served_model, which the gateway fills in."""
        async with contextlib.aclosing(self._residency.answers(request)) as responses:
            async for response in responses:
                yield response
