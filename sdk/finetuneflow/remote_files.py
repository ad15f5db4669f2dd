"""Datasets and artifacts for `await`: what is known of them over the event loop, their bytes in a thread."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from os import PathLike
from pathlib import Path

from finetuneflow import artifacts, datasets
from finetuneflow.paging import paged
from finetuneflow.resources.artifact import Artifact
from finetuneflow.resources.dataset import Dataset
from finetuneflow.transport import AsyncTransport, Transport
from finetuneflow.v1 import artifact_service_pb2, artifact_service_pb2_grpc, dataset_service_pb2
from finetuneflow.v1 import dataset_service_pb2_grpc as dataset_grpc


class AsyncDatasets:
    """`client.datasets` of an AsyncClient. `progress` is called in another thread."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self._stub = dataset_grpc.DatasetServiceStub(transport.channel)

    async def upload(
        self,
        path: str | PathLike[str],
        *,
        display_name: str = "",
        request_id: str = "",
        progress: datasets.Progress | None = None,
    ) -> Dataset:
        """As `Datasets.upload`. When it is cancelled, the dataset may or may not be there."""

        def work(transport: Transport) -> Dataset:
            service = datasets.Datasets(transport)
            return service.upload(path, display_name=display_name, request_id=request_id, progress=progress)

        return await self._transport.transfer(work)

    async def get(self, dataset_id: str) -> Dataset:
        """Raises NotFound."""
        request = dataset_service_pb2.GetDatasetRequest(dataset_id=dataset_id)
        return Dataset.from_proto((await self._transport.call(self._stub.GetDataset, request)).dataset)

    def list(self, *, limit: int | None = None) -> AsyncGenerator[Dataset, None]:
        """Newest first."""
        request = dataset_service_pb2.ListDatasetsRequest()
        return paged(self._transport, self._stub.ListDatasets, request, "datasets", limit, Dataset.from_proto)

    async def delete(self, dataset_id: str) -> None:
        """Deletes the rows for good. Raises NotFound, and FailedPrecondition while a job that has not ended uses it."""
        request = dataset_service_pb2.DeleteDatasetRequest(dataset_id=dataset_id)
        await self._transport.call(self._stub.DeleteDataset, request)


class AsyncArtifacts:
    """`client.artifacts` of an AsyncClient. `progress` is called in another thread."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self._stub = artifact_service_pb2_grpc.ArtifactServiceStub(transport.channel)

    def list(self, job_id: str, *, kind: str = "", limit: int | None = None) -> AsyncGenerator[Artifact, None]:
        """Of one job, oldest first; only of one `kind` when given. Raises NotFound."""
        request = artifact_service_pb2.ListArtifactsRequest(job_id=job_id, kind=kind)
        return paged(self._transport, self._stub.ListArtifacts, request, "artifacts", limit, Artifact.from_proto)

    async def download(
        self, artifact: Artifact | str, to: str | PathLike[str] = ".", *, progress: artifacts.Progress | None = None
    ) -> Path:
        """As `Artifacts.download`."""

        def work(transport: Transport) -> Path:
            return artifacts.Artifacts(transport).download(artifact, to, progress=progress)

        return await self._transport.transfer(work)
