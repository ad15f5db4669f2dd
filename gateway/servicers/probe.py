"""ProbeService as the gateway serves it: the fleet's hardware itself, the rest passed through to a probe."""

from typing import Any

import grpc

from finetuneflow.v1 import probe_service_pb2 as api
from finetuneflow.v1.probe_service_pb2_grpc import ProbeServiceServicer, ProbeServiceStub
from gateway.passthrough import Passthrough
from gateway.planning_target import PlanningTargets, hardware_of, no_node
from gateway.preflights import Preflights

Context = grpc.aio.ServicerContext[Any, Any]


class Probe(ProbeServiceServicer):
    """Served by the gateway."""

    def __init__(self, passthrough: Passthrough, machines: PlanningTargets, preflights: Preflights) -> None:
        self._passthrough = passthrough
        self._machines = machines
        self._preflights = preflights

    async def GetHardware(self, request: api.GetHardwareRequest, context: Context) -> api.GetHardwareResponse:
        nodes = await self._passthrough.nodes()
        if request.node_id:
            nodes = [node for node in nodes if node.id == request.node_id]
            if not nodes:
                raise no_node(request.node_id)
        return api.GetHardwareResponse(hardware=[hardware_of(node) for node in nodes])

    async def RecommendMethod(
        self, request: api.RecommendMethodRequest, context: Context
    ) -> api.RecommendMethodResponse:
        await self._machines.fill_in(request)
        answer: api.RecommendMethodResponse = await self._passthrough.unary(
            "probe", lambda channel: ProbeServiceStub(channel).RecommendMethod, request, context, request.node_id
        )
        return answer

    async def EstimateResources(
        self, request: api.EstimateResourcesRequest, context: Context
    ) -> api.EstimateResourcesResponse:
        await self._machines.fill_in(request)
        answer: api.EstimateResourcesResponse = await self._passthrough.unary(
            "probe", lambda channel: ProbeServiceStub(channel).EstimateResources, request, context, request.node_id
        )
        return answer

    async def PreflightFineTuningJob(
        self, request: api.PreflightFineTuningJobRequest, context: Context
    ) -> api.PreflightFineTuningJobResponse:
        return await self._preflights.ask(request, context)
