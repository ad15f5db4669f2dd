"""Files of rows to train and evaluate on."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path

import grpc

from finetuneflow.errors import ServerUnreachable
from finetuneflow.files import chunks, sha256_of
from finetuneflow.paging import pages
from finetuneflow.resources.dataset import Dataset
from finetuneflow.transport import Transport
from finetuneflow.v1 import dataset_service_pb2 as pb
from finetuneflow.v1 import dataset_service_pb2_grpc as pb_grpc

# Called with (bytes sent, bytes in all) of the file on its way.
Progress = Callable[[int, int], None]


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

        A cut upload is sent again under the same request_id, so it never makes a second dataset; give `request_id`
        to have the same certainty over several calls. Raises OSError when the file can't be read, InvalidArgument
        for an empty file or an unknown ending, ResourceExhausted above the operator's limit.
        """
        file = Path(path).expanduser()
        header = pb.UploadDatasetHeader(
            filename=file.name,
            display_name=display_name,
            size_bytes=file.stat().st_size,
            sha256=sha256_of(file),
            request_id=request_id or uuid.uuid4().hex,
        )
        patience = self._transport.patience()
        while True:
            upload = _Upload(file, header, progress)
            try:
                response = self._transport.stream(self._stub.UploadDataset, upload.messages())
            except grpc.RpcError as rpc_error:
                if upload.failure is not None:
                    raise upload.failure from None
                error = self._transport.error(rpc_error)
                delay = patience.next_delay() if isinstance(error, ServerUnreachable) else None
                if delay is None:
                    raise error from rpc_error
                time.sleep(delay)
            else:
                return Dataset.from_proto(response.dataset)

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


class _Upload:
    """The messages of one try. grpc swallows what their iterator raises, hence `failure`."""

    def __init__(self, file: Path, header: pb.UploadDatasetHeader, progress: Progress | None) -> None:
        self._file = file
        self._header = header
        self._progress = progress
        self.failure: Exception | None = None

    def messages(self) -> Iterator[pb.UploadDatasetRequest]:
        sent = 0
        yield pb.UploadDatasetRequest(header=self._header)
        try:
            for chunk in chunks(self._file):
                yield pb.UploadDatasetRequest(chunk=chunk)
                sent += len(chunk)
                if self._progress is not None:
                    self._progress(sent, self._header.size_bytes)
        except Exception as error:
            self.failure = error
            raise
