"""The machines behind the server, and what a training would need on them."""

from __future__ import annotations

from typing import Any

from finetuneflow.blocking import Blocking, blocking
from finetuneflow.fields import INT32_MAX, check_range, fill
from finetuneflow.resources.estimate import DecisionCell, Recommendation, ResourceEstimate
from finetuneflow.resources.hardware import Hardware
from finetuneflow.spec import partial_spec
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import probe_service_pb2 as pb
from finetuneflow.v1 import probe_service_pb2_grpc as pb_grpc

_GIB = 2**30
MOST_GIB = 2**32
"""Of memory that a caller may think of; what is measured in bytes still has room above it."""


class AsyncProbe:
    """`client.probe` of an AsyncClient."""

    def __init__(self, transport: CallPolicy) -> None:
        self._transport = transport
        self._stub = pb_grpc.ProbeServiceStub(transport.channel)

    async def hardware(self, *, node_id: str = "") -> list[Hardware]:
        """Every live node's machine, or that of one node."""
        response = await self._transport.call(self._stub.GetHardware, pb.GetHardwareRequest(node_id=node_id))
        return [Hardware.from_proto(hardware) for hardware in response.hardware]

    async def recommend(
        self,
        /,
        base_model: str,
        *,
        node_id: str = "",
        memory_gib: float | None = None,
        gpu: str = "",
        longest_row: int | None = None,
        **spec: Any,
    ) -> Recommendation:
        """How `base_model` is best trained: on the trainer with the most free memory, on the node `node_id`, or on a
        GPU with `memory_gib` free (its name in `gpu` gives speed and price). `spec` takes what `jobs.create` takes, but
        no data. Only the model's configuration and the headers of its weights are read."""
        request = recommend_request(
            base_model, node_id=node_id, memory_gib=memory_gib, gpu=gpu, longest_row=longest_row, spec=spec
        )
        response = await self.ask_recommendation(request)
        return Recommendation.from_proto(response.recommendation)

    async def decision_matrix(self, /, **spec: Any) -> list[DecisionCell]:
        """Which method for 3 to 70 billion parameters on GPUs of 4 to 48 GiB, row by row from the smallest GPU."""
        response = await self.ask_recommendation(recommend_request("", matrix=True, spec=spec))
        return [DecisionCell.from_proto(cell) for cell in response.matrix.cells]

    async def estimate(
        self,
        /,
        *,
        node_id: str = "",
        memory_gib: float | None = None,
        gpu: str = "",
        longest_row: int | None = None,
        num_examples: int | None = None,
        mean_tokens: float | None = None,
        **spec: Any,
    ) -> ResourceEstimate:
        """Memory, time and cost of a job as `jobs.create` takes it. How much data there is, is said by `num_examples`
        (rows), `mean_tokens` and `longest_row` (tokens); without the first there is no duration."""
        request = estimate_request(
            spec,
            node_id=node_id,
            memory_gib=memory_gib,
            gpu=gpu,
            longest_row=longest_row,
            num_examples=num_examples,
            mean_tokens=mean_tokens,
        )
        return ResourceEstimate.from_proto((await self.ask_estimate(request)).estimate)

    async def ask_recommendation(self, request: pb.RecommendMethodRequest) -> pb.RecommendMethodResponse:
        """The messages themselves."""
        response: pb.RecommendMethodResponse = await self._transport.call(self._stub.RecommendMethod, request)
        return response

    async def ask_estimate(self, request: pb.EstimateResourcesRequest) -> pb.EstimateResourcesResponse:
        """The messages themselves."""
        response: pb.EstimateResourcesResponse = await self._transport.call(self._stub.EstimateResources, request)
        return response


class Probe(Blocking):
    """`client.probe`."""

    hardware = blocking(AsyncProbe.hardware)
    recommend = blocking(AsyncProbe.recommend)
    decision_matrix = blocking(AsyncProbe.decision_matrix)
    estimate = blocking(AsyncProbe.estimate)
    ask_recommendation = blocking(AsyncProbe.ask_recommendation)
    ask_estimate = blocking(AsyncProbe.ask_estimate)


def recommend_request(
    base_model: str,
    *,
    node_id: str = "",
    memory_gib: float | None = None,
    gpu: str = "",
    longest_row: int | None = None,
    matrix: bool = False,
    spec: dict[str, Any] | None = None,
) -> pb.RecommendMethodRequest:
    """As `recommend` sends it. Raises InvalidArgument."""
    return fill(
        pb.RecommendMethodRequest(spec=partial_spec(spec) if spec else None),
        base_model=base_model,
        node_id=node_id,
        memory_bytes=_bytes(memory_gib),
        gpu=gpu,
        longest_row=longest_row,
        matrix=matrix,
    )


def estimate_request(
    spec: dict[str, Any],
    *,
    node_id: str = "",
    memory_gib: float | None = None,
    gpu: str = "",
    longest_row: int | None = None,
    num_examples: int | None = None,
    mean_tokens: float | None = None,
) -> pb.EstimateResourcesRequest:
    """As `estimate` sends it. Raises InvalidArgument."""
    # Data is counted by the caller: a file need not exist, nor be uploaded.
    values = {name: value for name, value in spec.items() if name not in ("training_data", "evaluation_data", "phases")}
    check_range("mean_tokens", mean_tokens, 1, INT32_MAX)
    return fill(
        pb.EstimateResourcesRequest(spec=partial_spec(values)),
        node_id=node_id,
        memory_bytes=_bytes(memory_gib),
        gpu=gpu,
        longest_row=longest_row,
        num_examples=num_examples,
        mean_tokens=mean_tokens,
    )


def _bytes(gib: float | None) -> int | None:
    check_range("memory_gib", gib, 1, MOST_GIB)
    return None if gib is None else round(gib * _GIB)
