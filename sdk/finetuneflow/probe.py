"""The machines behind the server."""

from __future__ import annotations

from finetuneflow.blocking import Blocking, blocking
from finetuneflow.resources.hardware import Hardware
from finetuneflow.transport import AsyncTransport
from finetuneflow.v1 import probe_service_pb2 as pb
from finetuneflow.v1 import probe_service_pb2_grpc as pb_grpc


class AsyncProbe:
    """`client.probe` of an AsyncClient."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self._stub = pb_grpc.ProbeServiceStub(transport.channel)

    async def hardware(self, *, node_id: str = "") -> list[Hardware]:
        """Every live node's machine, or that of one node."""
        response = await self._transport.call(self._stub.GetHardware, pb.GetHardwareRequest(node_id=node_id))
        return [Hardware.from_proto(hardware) for hardware in response.hardware]


class Probe(Blocking):
    """`client.probe`."""

    hardware = blocking(AsyncProbe.hardware)
