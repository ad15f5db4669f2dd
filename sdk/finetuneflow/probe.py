"""Hardware of the nodes, recommendations of a training method, and estimates."""

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
"""Upper limit of `memory_gib`, well below the largest number of bytes that an int64 holds."""


class AsyncProbe:
    """`client.probe` of an AsyncClient."""

    def __init__(self, transport: CallPolicy) -> None:
        self._transport = transport
        self._stub = pb_grpc.ProbeServiceStub(transport.channel)

    async def hardware(self, *, node_id: str = "") -> list[Hardware]:
        """Returns the hardware of every live node, or of one node.

        Args:
            node_id: Id of a node. Default: all live nodes.

        Returns:
            The hardware, ordered by node id.

        Raises:
            NotFound: No live node has this id.
        """
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
        """Recommends how to train a model on given hardware.

        Only the model's configuration and the headers of its weights are read.

        Args:
            base_model: A catalogue alias, a Hugging Face id, or the name of a known architecture such as llama-3.1-8b.
            node_id: Node whose hardware is used. Default: the trainer with the most free memory.
            memory_gib: Assumes a GPU with this much free memory in GiB instead of a node's hardware. Range [1, 2^32].
            gpu: Name of that GPU, such as "RTX 4090", for speed and price. Default: unknown; then neither is estimated.
            longest_row: Number of tokens in the longest row. Default: max_length.
            **spec: Further settings of the training, as in `jobs.create`, without data. Default: the recipe `default`.

        Returns:
            The recommendation, with reasons, changes and an estimate.

        Raises:
            InvalidArgument: The model is unknown, or a value is out of range.
            NotFound: No live node has this id.
            Unavailable: No probe is reachable.
        """
        request = recommend_request(
            base_model, node_id=node_id, memory_gib=memory_gib, gpu=gpu, longest_row=longest_row, spec=spec
        )
        response = await self.ask_recommendation(request)
        return Recommendation.from_proto(response.recommendation)

    async def decision_matrix(self, /, **spec: Any) -> list[DecisionCell]:
        """Returns the recommended method for models of 3 to 70 billion parameters on GPUs of 4 to 48 GiB.

        Args:
            **spec: Settings of the training, as in `jobs.create`, without data. Default: the recipe `default`.

        Returns:
            The cells of the matrix, row by row from the smallest GPU.

        Raises:
            InvalidArgument: A value is out of range.
            Unavailable: No probe is reachable.
        """
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
        """Estimates memory, time and cost of a job.

        Args:
            node_id: Node whose hardware is used. Default: the trainer with the most free memory.
            memory_gib: Assumes a GPU with this much free memory in GiB instead of a node's hardware. Range [1, 2^32].
            gpu: Name of that GPU, such as "RTX 4090", for speed and price. Default: unknown.
            longest_row: Number of tokens in the longest row. Default: max_length.
            num_examples: Rows trained on per epoch. Default: unknown; then no duration is estimated.
            mean_tokens: Mean number of tokens per row, at most longest_row. Default: half of the longest row.
            **spec: Settings of the job, as in `jobs.create`. Its data is ignored and need not exist.

        Returns:
            The estimate.

        Raises:
            InvalidArgument: A setting is invalid, or a value is out of range.
            NotFound: No live node has this id.
            Unavailable: No probe is reachable.
        """
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
        """Sends a RecommendMethod request.

        Args:
            request: The request message.

        Returns:
            The response message.
        """
        response: pb.RecommendMethodResponse = await self._transport.call(self._stub.RecommendMethod, request)
        return response

    async def ask_estimate(self, request: pb.EstimateResourcesRequest) -> pb.EstimateResourcesResponse:
        """Sends an EstimateResources request.

        Args:
            request: The request message.

        Returns:
            The response message.
        """
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
    """Returns the request that `recommend` sends. Raises InvalidArgument."""
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
    """Returns the request that `estimate` sends. Raises InvalidArgument."""
    # The caller gives the amount of data: a file need not exist, nor be uploaded.
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
