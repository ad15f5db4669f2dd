"""Files of rows to train and evaluate on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from finetuneflow.blocking import Blocking, blocking, iterating
from finetuneflow.enums import enum_number
from finetuneflow.errors import ApiError, InvalidArgument, Violation
from finetuneflow.fields import fill
from finetuneflow.files import utf8_path
from finetuneflow.paging import paged
from finetuneflow.resources.dataset import Dataset
from finetuneflow.resources.validation import RowPreview, ValidationReport
from finetuneflow.transport import AsyncTransport, Transport
from finetuneflow.uploading import FileUpload, Progress
from finetuneflow.v1 import dataset_service_pb2 as pb
from finetuneflow.v1 import dataset_service_pb2_grpc as pb_grpc
from finetuneflow.v1.fine_tuning_job_spec_pb2 import DataSource, Truncation

LOOK_SECONDS = 3600.0
"""Files are large, and every row is read."""


class AsyncDatasets:
    """`client.datasets` of an AsyncClient."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self._stub = pb_grpc.DatasetServiceStub(transport.channel)

    async def upload(
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
        empty file, an unknown ending or a name that is not UTF-8, ResourceExhausted above the operator's limit or where
        the server's disk is full, AlreadyExists when `request_id` stands for other content.
        """

        file = utf8_path(Path(path).expanduser())  # noqa: ASYNC240 - asks no disk

        def work(transport: Transport) -> Dataset:
            stub = pb_grpc.DatasetServiceStub(transport.channel)
            with FileUpload(transport, stub, file, display_name, request_id, progress) as upload:
                return Dataset.from_proto(upload.run())

        try:
            return await self._transport.transfer(work)
        except ApiError as error:
            # The caller gave a file and has never seen the message with the header in it.
            error.message = error.message.replace("header.filename: ", "")
            error.violations = tuple(Violation(_named(field, file.name), d) for field, d in error.violations)
            raise

    async def get(self, dataset_id: str) -> Dataset:
        """Raises NotFound."""
        request = pb.GetDatasetRequest(dataset_id=dataset_id)
        return Dataset.from_proto((await self._transport.call(self._stub.GetDataset, request)).dataset)

    def list(self, *, limit: int | None = None) -> AsyncGenerator[Dataset, None]:
        """Newest first."""
        request = pb.ListDatasetsRequest()
        return paged(self._transport, self._stub.ListDatasets, request, "datasets", limit, Dataset.from_proto)

    async def delete(self, dataset_id: str) -> None:
        """Deletes the rows for good. Raises NotFound, and FailedPrecondition while a job that has not ended uses it."""
        request = pb.DeleteDatasetRequest(dataset_id=dataset_id)
        await self._transport.call(self._stub.DeleteDataset, request)

    async def validate(
        self,
        dataset: str | Mapping[str, Any],
        base_model: str,
        *,
        max_length: int | None = None,
        chat_template: str | None = None,
        system_prompt: str | None = None,
        truncation: str | None = None,
    ) -> ValidationReport:
        """Checks every row as a job on it would. `dataset` is an id, or a source as `jobs.create` takes it: `dataset`,
        `mapping`, `template`, `format`. What is wrong with the rows is in the report.

        Raises NotFound for an unknown dataset, InvalidArgument for a source or a model that a job could not name.
        """
        request = fill(
            pb.ValidateDatasetRequest(source=data_source(dataset)),
            base_model=base_model,
            max_length=max_length,
            chat_template=chat_template,
            system_prompt=system_prompt,
            truncation=truncation_number(truncation),
        )
        response = await self._transport.call(self._stub.ValidateDataset, request, try_seconds=LOOK_SECONDS)
        return ValidationReport.from_proto(response.report)

    async def preview(
        self,
        dataset: str | Mapping[str, Any],
        base_model: str,
        *,
        first_row: int = 1,
        num_rows: int = 5,
        max_length: int | None = None,
        chat_template: str | None = None,
        system_prompt: str | None = None,
        truncation: str | None = None,
    ) -> tuple[RowPreview, ...]:
        """Rows as training will see them: text, tokens, what is trained. Raises what `validate` does."""
        request = fill(
            pb.PreviewDatasetRequest(source=data_source(dataset)),
            base_model=base_model,
            first_row=first_row,
            num_rows=num_rows,
            max_length=max_length,
            chat_template=chat_template,
            system_prompt=system_prompt,
            truncation=truncation_number(truncation),
        )
        response = await self._transport.call(self._stub.PreviewDataset, request, try_seconds=LOOK_SECONDS)
        return tuple(RowPreview.from_proto(row) for row in response.rows)


class Datasets(Blocking):
    """`client.datasets`."""

    upload = blocking(AsyncDatasets.upload)
    get = blocking(AsyncDatasets.get)
    list = iterating(AsyncDatasets.list)
    delete = blocking(AsyncDatasets.delete)
    validate = blocking(AsyncDatasets.validate)
    preview = blocking(AsyncDatasets.preview)


def data_source(dataset: str | Mapping[str, Any]) -> DataSource:
    """An id, or a table of a source's fields."""
    values: dict[str, Any] = {"dataset": dataset} if isinstance(dataset, str) else dict(dataset)
    known = DataSource.DESCRIPTOR.fields_by_name
    if unknown := [name for name in values if name not in known]:
        raise InvalidArgument(f"a source has no field {unknown[0]!r}; known: {', '.join(known)}")
    return fill(DataSource(), **values)


def truncation_number(truncation: str | None) -> Any:
    """Of its word; None stays None. Raises InvalidArgument."""
    return None if truncation is None else enum_number(Truncation.DESCRIPTOR, truncation, "truncation")


def _named(field: str, file: str) -> str:
    return file if field == "header.filename" else field
