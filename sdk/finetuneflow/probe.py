"""The machines behind the server."""

from __future__ import annotations

from finetuneflow.resources.hardware import Hardware
from finetuneflow.transport import Transport
from finetuneflow.v1 import probe_service_pb2 as pb
from finetuneflow.v1 import probe_service_pb2_grpc as pb_grpc


class Probe:
    """`client.probe`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = pb_grpc.ProbeServiceStub(transport.channel)

    def hardware(self, *, node_id: str = "") -> list[Hardware]:
        """Every live node's machine, or that of one node."""
        response = self._transport.call(self._stub.GetHardware, pb.GetHardwareRequest(node_id=node_id))
        return [Hardware.from_proto(hardware) for hardware in response.hardware]
