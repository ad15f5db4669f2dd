"""`ProbeService`. Methods that are not here answer UNIMPLEMENTED, with ErrorInfo, through the generated base class."""

import asyncio
from typing import Any

from chassis.errors import NotFound
from finetuneflow.v1 import probe_service_pb2, probe_service_pb2_grpc
from services.hardware import read_hardware
from services.probe.settings import ProbeSettings


class ProbeServicer(probe_service_pb2_grpc.ProbeServiceServicer):
    """Answers for its own machine."""

    def __init__(self, settings: ProbeSettings) -> None:
        self._settings = settings

    async def GetHardware(
        self, request: probe_service_pb2.GetHardwareRequest, context: Any
    ) -> probe_service_pb2.GetHardwareResponse:
        """NOT_FOUND for the id of another node: the gateway knows them all."""
        own = self._settings.node_id
        if request.node_id not in ("", own):
            raise NotFound(
                "NODE_NOT_FOUND", f"This probe is {own}; ask the gateway for other nodes.", metadata={"node_id": own}
            )
        hardware = await asyncio.to_thread(read_hardware, own, self._settings.home)
        return probe_service_pb2.GetHardwareResponse(hardware=[hardware])
