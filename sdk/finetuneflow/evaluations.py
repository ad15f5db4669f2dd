"""Comparisons of tuned models with their bases."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from finetuneflow.blocking import Blocking, blocking, iterating
from finetuneflow.paging import paged
from finetuneflow.resources.evaluation import Evaluation
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import evaluation_service_pb2 as pb
from finetuneflow.v1 import evaluation_service_pb2_grpc as pb_grpc


class AsyncEvaluations:
    """`client.evaluations` of an AsyncClient."""

    def __init__(self, transport: CallPolicy) -> None:
        self._transport = transport
        self._stub = pb_grpc.EvaluationServiceStub(transport.channel)

    async def get(self, evaluation_id: str) -> Evaluation:
        """Returns one evaluation.

        Args:
            evaluation_id: Id of the evaluation.

        Returns:
            The evaluation.

        Raises:
            NotFound: The evaluation does not exist.
        """
        request = pb.GetEvaluationRequest(evaluation_id=evaluation_id)
        response = await self._transport.call(self._stub.GetEvaluation, request)
        return Evaluation.from_proto(response.evaluation)

    def list(self, *, job_id: str = "", limit: int | None = None) -> AsyncGenerator[Evaluation, None]:
        """Lists the evaluations, newest first. Pages are fetched as needed.

        Args:
            job_id: Lists only evaluations of this job. Default: all.
            limit: Maximum number of evaluations. Default: no limit.

        Yields:
            The evaluations.
        """
        request = pb.ListEvaluationsRequest(job_id=job_id)
        return paged(self._transport, self._stub.ListEvaluations, request, "evaluations", limit, Evaluation.from_proto)


class Evaluations(Blocking):
    """`client.evaluations`."""

    get = blocking(AsyncEvaluations.get)
    list = iterating(AsyncEvaluations.list)
