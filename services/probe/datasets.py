"""Serves the part of `DatasetService` that reads rows, for gateways. The other methods answer UNIMPLEMENTED."""

from typing import Any

from engine.config.hub_reference import is_hub_reference
from finetuneflow.v1 import dataset_service_pb2 as api
from finetuneflow.v1.dataset_pb2 import Dataset
from finetuneflow.v1.dataset_service_pb2_grpc import DatasetServiceServicer
from services.probe.queries.query_runner import ServedQueries


class DatasetsServicer(DatasetServiceServicer):
    """Reads the dataset that the gateway has put into the request."""

    def __init__(self, queries: ServedQueries) -> None:
        self._queries = queries

    async def ValidateDataset(self, request: api.ValidateDatasetRequest, context: Any) -> api.ValidateDatasetResponse:
        return await self._queries.run(
            "ValidateDataset", request, request.tenant, _datasets(request), api.ValidateDatasetResponse()
        )

    async def PreviewDataset(self, request: api.PreviewDatasetRequest, context: Any) -> api.PreviewDatasetResponse:
        return await self._queries.run(
            "PreviewDataset", request, request.tenant, _datasets(request), api.PreviewDatasetResponse()
        )


def _datasets(request: api.ValidateDatasetRequest | api.PreviewDatasetRequest) -> dict[str, Dataset]:
    name = request.source.dataset
    return {} if is_hub_reference(name) else {name: request.dataset}
