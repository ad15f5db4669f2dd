"""Packages made from finished models."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from finetuneflow.blocking import Blocking, blocking, iterating
from finetuneflow.paging import paged
from finetuneflow.resources.export import Export
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import export_service_pb2 as pb
from finetuneflow.v1 import export_service_pb2_grpc as pb_grpc


class AsyncExports:
    """`client.exports` of an AsyncClient."""

    def __init__(self, transport: CallPolicy) -> None:
        self._transport = transport
        self._stub = pb_grpc.ExportServiceStub(transport.channel)

    async def get(self, export_id: str) -> Export:
        """Returns one export.

        Args:
            export_id: Id of the export.

        Returns:
            The export.

        Raises:
            NotFound: The export does not exist.
        """
        request = pb.GetExportRequest(export_id=export_id)
        response = await self._transport.call(self._stub.GetExport, request)
        return Export.from_proto(response.export)

    def list(self, *, job_id: str = "", limit: int | None = None) -> AsyncGenerator[Export, None]:
        """Lists the exports, newest first. Pages are fetched as needed.

        Args:
            job_id: Lists only exports of this job. Default: all.
            limit: Maximum number of exports. Default: no limit.

        Yields:
            The exports.
        """
        request = pb.ListExportsRequest(job_id=job_id)
        return paged(self._transport, self._stub.ListExports, request, "exports", limit, Export.from_proto)


class Exports(Blocking):
    """`client.exports`."""

    get = blocking(AsyncExports.get)
    list = iterating(AsyncExports.list)
