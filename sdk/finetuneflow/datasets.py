"""Files of rows to train and evaluate on."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from finetuneflow.adapter_folder import pack
from finetuneflow.blocking import Blocking, blocking, iterating
from finetuneflow.enums import enum_number
from finetuneflow.errors import ApiError, InvalidArgument, Violation
from finetuneflow.fields import fill
from finetuneflow.files import sha256_of, utf8_path
from finetuneflow.paging import paged
from finetuneflow.resources.dataset import Dataset
from finetuneflow.resources.validation import RowPreview, ValidationReport
from finetuneflow.transport import CallPolicy, PlainCalls
from finetuneflow.uploading import FileUpload, Progress
from finetuneflow.v1 import dataset_service_pb2 as pb
from finetuneflow.v1 import dataset_service_pb2_grpc as pb_grpc
from finetuneflow.v1.fine_tuning_job_spec_pb2 import DataSource, Truncation

CHECK_SECONDS = 3600.0
"""Deadline of calls that check rows: files are large, and every row is read."""


class AsyncDatasets:
    """`client.datasets` of an AsyncClient."""

    def __init__(self, transport: CallPolicy) -> None:
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
        """Uploads one file, which the server verifies by size and SHA-256.

        An interrupted upload resumes where it stopped: in this call for up to 60 s without progress, and in a later
        call, also from another process, within 24 hours.

        Args:
            path: Path of the file. Its extension tells how it is read: jsonl, ndjson, json, csv, tsv or txt, each
                optionally followed by .gz or .zst, and parquet.
            display_name: Display name, at most 128 characters. Default: the file's name.
            request_id: Makes the call idempotent: a repeated call with the same request_id and content returns the same
                dataset. At most 128 characters. Default: derived from the file, so that uploading the same file again
                returns the same dataset. A file of up to 64 MiB is identified by name and content, a larger one by
                path, size and modification time.
            progress: Called with the bytes sent so far and the size of the file, in bytes. The first number may
                decrease after an interruption.

        Returns:
            The dataset, complete and verified.

        Raises:
            OSError: The file cannot be read.
            IntegrityError: The file changed during the upload.
            InvalidArgument: The file is empty, has an unknown extension, or its path is not UTF-8.
            ResourceExhausted: The file exceeds the operator's size limit, or the server's disk is full.
            AlreadyExists: The request_id was used for other content.
        """

        file = utf8_path(Path(path).expanduser())  # noqa: ASYNC240 - asks no disk

        def work(calls: PlainCalls) -> Dataset:
            stub = pb_grpc.DatasetServiceStub(calls.channel)
            with FileUpload(calls, stub, file, display_name, request_id, progress) as upload:
                return Dataset.from_proto(upload.run())

        try:
            return await self._transport.transfer(work)
        except ApiError as error:
            # The caller gave a file and has never seen the message with the header in it.
            error.message = error.message.replace("header.filename: ", "")
            error.violations = tuple(Violation(_named(field, file.name), d) for field, d in error.violations)
            raise

    async def upload_adapter(
        self, folder: str | PathLike[str], *, display_name: str = "", progress: Progress | None = None
    ) -> Dataset:
        """Uploads a LoRA adapter that was made elsewhere, for `start_from` of a job.

        It becomes one file, with the configuration in its header. An interrupted upload resumes, and uploading the same
        adapter again returns the same dataset. Preflight checks it against the job's base model.

        Args:
            folder: Folder with adapter_config.json and adapter_model.safetensors, as peft saves it.
            display_name: Display name, at most 128 characters. Default: the folder's name.
            progress: Called with the bytes sent so far and the size of the file, in bytes.

        Returns:
            The dataset; its id is the job's start_from.

        Raises:
            OSError: A file cannot be read.
            InvalidArgument: The folder has no adapter as safetensors.
            ResourceExhausted: The file exceeds the operator's size limit, or the server's disk is full.
        """
        source = utf8_path(Path(folder).expanduser().resolve())  # noqa: ASYNC240 - asks the local disk only

        def work(calls: PlainCalls) -> Dataset:
            stub, name = pb_grpc.DatasetServiceStub(calls.channel), display_name or source.name[:128]
            with tempfile.TemporaryDirectory(prefix="ftf-adapter-") as temporary:
                packed = Path(temporary, f"{source.name}.safetensors")
                pack(source, packed)
                # By its content: the temporary file has another path and time in every call.
                identity = f"adapter-{sha256_of(packed)}"
                with FileUpload(calls, stub, packed, name, identity, progress) as upload:
                    return Dataset.from_proto(upload.run())

        return await self._transport.transfer(work)

    async def get(self, dataset_id: str) -> Dataset:
        """Returns one dataset.

        Args:
            dataset_id: Id of the dataset.

        Returns:
            The dataset.

        Raises:
            NotFound: The dataset does not exist.
        """
        request = pb.GetDatasetRequest(dataset_id=dataset_id)
        return Dataset.from_proto((await self._transport.call(self._stub.GetDataset, request)).dataset)

    def list(self, *, limit: int | None = None) -> AsyncGenerator[Dataset, None]:
        """Lists the datasets, newest first. Pages are fetched as needed.

        Args:
            limit: Maximum number of datasets. Default: no limit.

        Yields:
            The datasets.
        """
        request = pb.ListDatasetsRequest()
        return paged(self._transport, self._stub.ListDatasets, request, "datasets", limit, Dataset.from_proto)

    async def delete(self, dataset_id: str) -> None:
        """Deletes a dataset and its rows permanently.

        Args:
            dataset_id: Id of the dataset.

        Raises:
            NotFound: The dataset does not exist.
            FailedPrecondition: A job that has not ended uses the dataset.
        """
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
        """Checks every row of a dataset as preflight does, without creating a job. Takes up to an hour.

        Args:
            dataset: Id of the dataset, `hf://owner/name`, or a table with the fields `dataset`, `mapping`, `template`
                and `format` of a DataSource.
            base_model: Model whose tokenizer and chat template are used.
            max_length: Maximum number of tokens in a row. Range [8, 1,048,576]; default 2048.
            chat_template: Jinja chat template that replaces the model's own. At most 32 KiB. Default: the model's.
            system_prompt: System turn for every conversation that has none of its own. At most 16 KiB. Default: none.
            truncation: Treatment of rows longer than max_length: `keep_start`, `keep_end` or `drop`. Default
                `keep_start`.

        Returns:
            The report. Problems of the rows are part of it, not an exception.

        Raises:
            NotFound: The dataset does not exist.
            InvalidArgument: A job could not name this source or model either.
            Unavailable: No probe is reachable.
        """
        request = fill(
            pb.ValidateDatasetRequest(source=data_source(dataset)),
            base_model=base_model,
            max_length=max_length,
            chat_template=chat_template,
            system_prompt=system_prompt,
            truncation=truncation_number(truncation),
        )
        response = await self._transport.call(self._stub.ValidateDataset, request, try_seconds=CHECK_SECONDS)
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
        """Returns rows as training will see them: text, tokens, and which tokens are trained.

        Args:
            dataset: Id of the dataset, `hf://owner/name`, or a table with the fields `dataset`, `mapping`, `template`
                and `format` of a DataSource.
            base_model: Model whose tokenizer and chat template are used.
            first_row: First row to return, from 1. Default 1.
            num_rows: Maximum number of rows to return. Range [1, 100]; default 5.
            max_length: Maximum number of tokens in a row. Range [8, 1,048,576]; default 2048.
            chat_template: Jinja chat template that replaces the model's own. At most 32 KiB. Default: the model's.
            system_prompt: System turn for every conversation that has none of its own. At most 16 KiB. Default: none.
            truncation: Treatment of rows longer than max_length: `keep_start`, `keep_end` or `drop`. Default
                `keep_start`.

        Returns:
            The rows in file order, at most 3 MiB in total; a row that a template turns into several examples appears
            once per example.

        Raises:
            NotFound: The dataset does not exist.
            InvalidArgument: A job could not name this source or model either, or the file cannot be read as a whole.
            Unavailable: No probe is reachable.
        """
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
        response = await self._transport.call(self._stub.PreviewDataset, request, try_seconds=CHECK_SECONDS)
        return tuple(RowPreview.from_proto(row) for row in response.rows)


class Datasets(Blocking):
    """`client.datasets`."""

    upload = blocking(AsyncDatasets.upload)
    upload_adapter = blocking(AsyncDatasets.upload_adapter)
    get = blocking(AsyncDatasets.get)
    list = iterating(AsyncDatasets.list)
    delete = blocking(AsyncDatasets.delete)
    validate = blocking(AsyncDatasets.validate)
    preview = blocking(AsyncDatasets.preview)


def data_source(dataset: str | Mapping[str, Any]) -> DataSource:
    """Returns the message of a source that is given by its id or as a table of its fields."""
    values: dict[str, Any] = {"dataset": dataset} if isinstance(dataset, str) else dict(dataset)
    known = DataSource.DESCRIPTOR.fields_by_name
    if unknown := [name for name in values if name not in known]:
        raise InvalidArgument(f"A source has no field {unknown[0]!r}. Its fields are {', '.join(known)}.")
    return fill(DataSource(), **values)


def truncation_number(truncation: str | None) -> Any:
    """Returns the enum value of a truncation's name, and None for None. Raises InvalidArgument."""
    return None if truncation is None else enum_number(Truncation.DESCRIPTOR, truncation, "truncation")


def _named(field: str, file: str) -> str:
    return file if field == "header.filename" else field
