"""`ExporterService`, for operators."""

from typing import Any

from chassis.attempt.stage_worker import StageWorker
from finetuneflow.v1 import exporter_service_pb2 as pb
from finetuneflow.v1 import exporter_service_pb2_grpc
from finetuneflow.v1.fine_tuning_job_spec_pb2 import (
    EXPORT_FORMAT_ADAPTER,
    EXPORT_FORMAT_GGUF,
    EXPORT_FORMAT_GGUF_ADAPTER,
    EXPORT_FORMAT_MERGED,
)

_FORMATS = (EXPORT_FORMAT_ADAPTER, EXPORT_FORMAT_MERGED, EXPORT_FORMAT_GGUF, EXPORT_FORMAT_GGUF_ADAPTER)


class ExporterServicer(exporter_service_pb2_grpc.ExporterServiceServicer):
    """Describes the stage worker of this process."""

    def __init__(self, worker: StageWorker) -> None:
        self._worker = worker

    async def GetExporter(self, request: pb.GetExporterRequest, context: Any) -> pb.GetExporterResponse:
        return pb.GetExporterResponse(node=self._worker.node(), formats=_FORMATS)
