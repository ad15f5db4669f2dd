"""Datasets and artifacts for `await`: what is known of them over the event loop, their bytes in a thread."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from os import PathLike
from pathlib import Path

from finetuneflow import artifacts, datasets
from finetuneflow.blocking import Blocking, blocking, iterating
from finetuneflow.errors import ApiError, Violation
from finetuneflow.paging import paged
from finetuneflow.resources.artifact import Artifact
from finetuneflow.resources.dataset import Dataset
from finetuneflow.transport import AsyncTransport, Transport
from finetuneflow.v1 import artifact_service_pb2, artifact_service_pb2_grpc, dataset_service_pb2
from finetuneflow.v1 import dataset_service_pb2_grpc as dataset_grpc


class AsyncDatasets:
    """`client.datasets` of an AsyncClient."""

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
        """Uploads one file, which the server checks against its size and SHA-256.

        An upload that is cut goes on where it was cut, in this call by itself and in a later one within a day. The same
        file again is the same dataset; give a `request_id` of your own to decide what counts as the same.

        Raises OSError when the file can't be read, IntegrityError when it changes meanwhile, InvalidArgument for an
        empty file or an unknown ending, ResourceExhausted above the operator's limit or where the server's disk is
        full, AlreadyExists when `request_id` stands for other content.
        """

        def work(transport: Transport) -> Dataset:
            service = datasets.Datasets(transport)
            return service.upload(path, display_name=display_name, request_id=request_id, progress=progress)

        try:
            return await self._transport.transfer(work)
        except ApiError as error:
            # The caller gave a file and has never seen the message with the header in it.
            renamed = [Violation(_named(field, Path(path).name), text) for field, text in error.violations]
            error.violations = tuple(renamed)
            raise

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
    """`client.artifacts` of an AsyncClient."""

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
        """Downloads one file and returns its path: `to` itself, or a file below `to` when that is a folder.

        The path holds the whole file with the SHA-256 the server named, or it is as it was before. A download that
        was cut goes on where it stopped, in this call and in a later one. Raises NotFound, FailedPrecondition for a
        folder, IntegrityError.
        """

        def work(transport: Transport) -> Path:
            return artifacts.Artifacts(transport).download(artifact, to, progress=progress)

        return await self._transport.transfer(work)


class Datasets(Blocking):
    """`client.datasets`."""

    upload = blocking(AsyncDatasets.upload)
    get = blocking(AsyncDatasets.get)
    list = iterating(AsyncDatasets.list)
    delete = blocking(AsyncDatasets.delete)


class Artifacts(Blocking):
    """`client.artifacts`."""

    list = iterating(AsyncArtifacts.list)
    download = blocking(AsyncArtifacts.download)


def _named(field: str, file: str) -> str:
    return file if field == "header.filename" else field
