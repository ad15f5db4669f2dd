"""Packages made from finished models."""

from __future__ import annotations

from collections.abc import Iterator

from finetuneflow.paging import pages
from finetuneflow.resources.export import Export
from finetuneflow.transport import Transport
from finetuneflow.v1 import export_service_pb2 as pb
from finetuneflow.v1 import export_service_pb2_grpc as pb_grpc


class Exports:
    """`client.exports`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = pb_grpc.ExportServiceStub(transport.channel)

    def get(self, export_id: str) -> Export:
        """Raises NotFound."""
        request = pb.GetExportRequest(export_id=export_id)
        return Export.from_proto(self._transport.call(self._stub.GetExport, request).export)

    def list(self, *, job_id: str = "", limit: int | None = None) -> Iterator[Export]:
        """Newest first; only those of one job when `job_id` is given."""
        request = pb.ListExportsRequest(job_id=job_id)
        return map(Export.from_proto, pages(self._transport, self._stub.ListExports, request, "exports", limit))
