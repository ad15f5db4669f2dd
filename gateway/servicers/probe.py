"""ProbeService as the gateway serves it: the fleet's hardware itself, the rest passed through to a probe."""

from typing import Any

import grpc

from chassis.errors import NotFound
from finetuneflow.v1 import probe_service_pb2 as api
from finetuneflow.v1.hardware_pb2 import Hardware
from finetuneflow.v1.probe_service_pb2_grpc import ProbeServiceServicer, ProbeServiceStub
from finetuneflow.v1.work_pb2 import Node
from gateway.passthrough import Passthrough
from gateway.speeds import Speeds

Context = grpc.aio.ServicerContext[Any, Any]


class Probe(ProbeServiceServicer):
    """Served by the gateway."""

    def __init__(self, passthrough: Passthrough, speeds: Speeds) -> None:
        self._passthrough = passthrough
        self._speeds = speeds

    async def GetHardware(self, request: api.GetHardwareRequest, context: Context) -> api.GetHardwareResponse:
        nodes = await self._passthrough.nodes()
        if request.node_id:
            nodes = [node for node in nodes if node.id == request.node_id]
            if not nodes:
                raise _no_node(request.node_id)
        return api.GetHardwareResponse(hardware=[_hardware(node) for node in nodes])

    async def RecommendMethod(
        self, request: api.RecommendMethodRequest, context: Context
    ) -> api.RecommendMethodResponse:
        await self._fill_in(request)
        answer: api.RecommendMethodResponse = await self._passthrough.unary(
            "probe", lambda channel: ProbeServiceStub(channel).RecommendMethod, request, context, request.node_id
        )
        return answer

    async def EstimateResources(
        self, request: api.EstimateResourcesRequest, context: Context
    ) -> api.EstimateResourcesResponse:
        await self._fill_in(request)
        answer: api.EstimateResourcesResponse = await self._passthrough.unary(
            "probe", lambda channel: ProbeServiceStub(channel).EstimateResources, request, context, request.node_id
        )
        return answer

    async def _fill_in(self, request: api.RecommendMethodRequest | api.EstimateResourcesRequest) -> None:
        """What any probe then needs to answer: speeds that were measured, and the hardware of the node that is asked
        about or of the trainer with the most room. No hardware where the request has a machine of its own, or no node
        tells of one."""
        if not request.observed:
            request.observed.extend(await self._speeds.latest())
        if request.HasField("hardware") or request.HasField("memory_bytes"):
            return
        nodes = await self._passthrough.nodes()
        if request.node_id:
            nodes = [node for node in nodes if node.id == request.node_id]
            if not nodes:
                raise _no_node(request.node_id)
        machines = [_hardware(node) for node in nodes if request.node_id or node.service == "trainer"]
        machines = [hardware for hardware in machines if hardware.memory_total_bytes]
        if machines:
            request.hardware.CopyFrom(max(machines, key=_room))

    async def PreflightFineTuningJob(
        self, request: api.PreflightFineTuningJobRequest, context: Context
    ) -> api.PreflightFineTuningJobResponse:
        answer: api.PreflightFineTuningJobResponse = await self._passthrough.unary(
            "probe", lambda channel: ProbeServiceStub(channel).PreflightFineTuningJob, request, context
        )
        return answer


def _no_node(node_id: str) -> NotFound:
    return NotFound("NODE_NOT_FOUND", f"there is no live node {node_id!r}", metadata={"node_id": node_id})


def _hardware(node: Node) -> Hardware:
    """What the node says of its machine; a node that says nothing is still listed."""
    hardware = Hardware()
    hardware.CopyFrom(node.hardware)
    hardware.node_id = node.id
    hardware.draining = node.draining
    return hardware


def _room(hardware: Hardware) -> tuple[bool, int]:
    """A usable GPU before any amount of main memory; then by what is free."""
    if hardware.cuda_available and hardware.gpus:
        return True, max(gpu.memory_free_bytes for gpu in hardware.gpus)
    return False, hardware.memory_available_bytes
