"""Serves `ProbeService`."""

import asyncio
from typing import Any

from chassis.errors import NotFound
from finetuneflow.v1 import probe_service_pb2, probe_service_pb2_grpc
from services.hardware import read_hardware
from services.probe.estimates import Estimates
from services.probe.queries.query_runner import ServedQueries
from services.probe.settings import ProbeSettings


class ProbeServicer(probe_service_pb2_grpc.ProbeServiceServicer):
    """Answers for the machine of this probe."""

    def __init__(self, settings: ProbeSettings, estimates: Estimates, queries: ServedQueries) -> None:
        self._settings = settings
        self._estimates = estimates
        self._queries = queries

    async def GetHardware(
        self, request: probe_service_pb2.GetHardwareRequest, context: Any
    ) -> probe_service_pb2.GetHardwareResponse:
        """NOT_FOUND for the id of another node; only the gateway knows all nodes."""
        self._own(request.node_id)
        hardware = await asyncio.to_thread(read_hardware, self._settings.node_id, self._settings.home)
        return probe_service_pb2.GetHardwareResponse(hardware=[hardware])

    async def RecommendMethod(
        self, request: probe_service_pb2.RecommendMethodRequest, context: Any
    ) -> probe_service_pb2.RecommendMethodResponse:
        """NOT_FOUND as in GetHardware, unless the request contains the hardware."""
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
        """NOT_FOUND as in RecommendMethod, and for a dataset whose file is not in the artifact store."""
        if not request.HasField("hardware"):
            self._own(request.node_id)
        datasets = {dataset.id: dataset for dataset in request.datasets}
        response = probe_service_pb2.PreflightFineTuningJobResponse()
        return await self._queries.run("PreflightFineTuningJob", request, request.tenant, datasets, response)

    def _own(self, node_id: str) -> None:
        own = self._settings.node_id
        if node_id not in ("", own):
            raise NotFound(
                "NODE_NOT_FOUND",
                f"This probe runs on node {own}. Ask the gateway for other nodes.",
                metadata={"node_id": own},
            )
