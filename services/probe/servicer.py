"""`ProbeService`."""

import asyncio
from typing import Any

from chassis.errors import NotFound
from finetuneflow.v1 import probe_service_pb2, probe_service_pb2_grpc
from services.hardware import read_hardware
from services.probe.estimates import Estimates
from services.probe.preflights import Preflights
from services.probe.settings import ProbeSettings


class ProbeServicer(probe_service_pb2_grpc.ProbeServiceServicer):
    """Answers for its own machine."""

    def __init__(self, settings: ProbeSettings, estimates: Estimates, preflights: Preflights) -> None:
        self._settings = settings
        self._estimates = estimates
        self._preflights = preflights

    async def GetHardware(
        self, request: probe_service_pb2.GetHardwareRequest, context: Any
    ) -> probe_service_pb2.GetHardwareResponse:
        """NOT_FOUND for the id of another node: the gateway knows them all."""
        self._own(request.node_id)
        hardware = await asyncio.to_thread(read_hardware, self._settings.node_id, self._settings.home)
        return probe_service_pb2.GetHardwareResponse(hardware=[hardware])

    async def RecommendMethod(
        self, request: probe_service_pb2.RecommendMethodRequest, context: Any
    ) -> probe_service_pb2.RecommendMethodResponse:
        """NOT_FOUND as in GetHardware, unless the request brings the hardware along."""
        if not request.HasField("hardware"):
            self._own(request.node_id)
        return await asyncio.to_thread(self._estimates.recommend, request)

    async def EstimateResources(
        self, request: probe_service_pb2.EstimateResourcesRequest, context: Any
    ) -> probe_service_pb2.EstimateResourcesResponse:
        """NOT_FOUND as in RecommendMethod."""
        if not request.HasField("hardware"):
            self._own(request.node_id)
        return await asyncio.to_thread(self._estimates.estimate, request)

    async def PreflightFineTuningJob(
        self, request: probe_service_pb2.PreflightFineTuningJobRequest, context: Any
    ) -> probe_service_pb2.PreflightFineTuningJobResponse:
        """NOT_FOUND as in RecommendMethod, and for datasets that did not come with the request."""
        if not request.HasField("hardware"):
            self._own(request.node_id)
        return await self._preflights.preflight(request)

    def _own(self, node_id: str) -> None:
        own = self._settings.node_id
        if node_id not in ("", own):
            raise NotFound(
                "NODE_NOT_FOUND", f"This probe is {own}; ask the gateway for other nodes.", metadata={"node_id": own}
            )
