"""Files of rows to train and evaluate on."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from finetuneflow.paging import pages
from finetuneflow.resources.dataset import Dataset
from finetuneflow.transport import Transport
from finetuneflow.uploading import FileUpload
from finetuneflow.uploading import Progress as Progress
from finetuneflow.v1 import dataset_service_pb2 as pb
from finetuneflow.v1 import dataset_service_pb2_grpc as pb_grpc


class Datasets:
    """`client.datasets`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = pb_grpc.DatasetServiceStub(transport.channel)

    def upload(
        self,
        path: str | PathLike[str],
        *,
        display_name: str = "",
        request_id: str = "",
        progress: Progress | None = None,
    ) -> Dataset:
        """Uploads one file, which the server checks against its size and SHA-256.

        An upload that is cut goes on where it was cut: in this call by itself, for up to a minute without progress,
        and in a later one, of another process too, within a day. The same file again is the same dataset; give a
        `request_id` of your own to decide what counts as the same. Up to 64 MiB a file is known by its name and
        content, above that by its path, size and times.

        Raises OSError when the file can't be read, IntegrityError when it changes meanwhile, InvalidArgument for an
        empty file or an unknown ending, ResourceExhausted above the operator's limit or where the server's disk is
        full, AlreadyExists when `request_id` stands for other content.
        """
        file = Path(path).expanduser()
        with FileUpload(self._transport, self._stub, file, display_name, request_id, progress) as upload:
            return Dataset.from_proto(upload.run())

    def get(self, dataset_id: str) -> Dataset:
        """Raises NotFound."""
        response = self._transport.call(self._stub.GetDataset, pb.GetDatasetRequest(dataset_id=dataset_id))
        return Dataset.from_proto(response.dataset)

    def list(self, *, limit: int | None = None) -> Iterator[Dataset]:
        """Newest first."""
        request = pb.ListDatasetsRequest()
        return map(Dataset.from_proto, pages(self._transport, self._stub.ListDatasets, request, "datasets", limit))

    def delete(self, dataset_id: str) -> None:
        """Deletes the rows for good. Raises NotFound, and FailedPrecondition while a job that has not ended uses it."""
        self._transport.call(self._stub.DeleteDataset, pb.DeleteDatasetRequest(dataset_id=dataset_id))
