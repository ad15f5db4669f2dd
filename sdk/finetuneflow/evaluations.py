"""Comparisons of tuned models with their bases."""

from __future__ import annotations

from collections.abc import Iterator

from finetuneflow.paging import pages
from finetuneflow.resources.evaluation import Evaluation
from finetuneflow.transport import Transport
from finetuneflow.v1 import evaluation_service_pb2 as pb
from finetuneflow.v1 import evaluation_service_pb2_grpc as pb_grpc


class Evaluations:
    """`client.evaluations`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = pb_grpc.EvaluationServiceStub(transport.channel)

    def get(self, evaluation_id: str) -> Evaluation:
        """Raises NotFound."""
        request = pb.GetEvaluationRequest(evaluation_id=evaluation_id)
        return Evaluation.from_proto(self._transport.call(self._stub.GetEvaluation, request).evaluation)

    def list(self, *, job_id: str = "", limit: int | None = None) -> Iterator[Evaluation]:
        """Newest first; only those of one job when `job_id` is given."""
        request = pb.ListEvaluationsRequest(job_id=job_id)
        return map(
            Evaluation.from_proto, pages(self._transport, self._stub.ListEvaluations, request, "evaluations", limit)
        )
