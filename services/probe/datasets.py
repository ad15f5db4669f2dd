"""The part of `DatasetService` that a probe serves for gateways. The other methods answer UNIMPLEMENTED."""

from typing import Any

from finetuneflow.v1 import dataset_service_pb2 as api
from finetuneflow.v1.dataset_service_pb2_grpc import DatasetServiceServicer
from services.probe.looking import Looking


class DatasetsServicer(DatasetServiceServicer):
    """Looks at the rows of the dataset that the gateway has put into the request."""

    def __init__(self, looking: Looking) -> None:
        self._looking = looking

    async def ValidateDataset(self, request: api.ValidateDatasetRequest, context: Any) -> api.ValidateDatasetResponse:
        return await self._looking.validate(request)

    async def PreviewDataset(self, request: api.PreviewDatasetRequest, context: Any) -> api.PreviewDatasetResponse:
        return await self._looking.preview(request)
