"""Uploads of one file, over as many streams as it takes."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from finetuneflow.chunks import CHUNK_BYTES, frame
from finetuneflow.errors import (
    ApiError,
    DeadlineExceeded,
    IntegrityError,
    InvalidArgument,
    OutOfRange,
    Unavailable,
)
from finetuneflow.hashing import Hashing
from finetuneflow.patience import Patience
from finetuneflow.transport import PlainCalls
from finetuneflow.v1 import dataset_service_pb2 as pb
from finetuneflow.v1.dataset_pb2 import Dataset

# Called with the bytes sent so far and the size of the file; the first number may decrease after an interruption.
Progress = Callable[[int, int], None]

# Up to this size a file is hashed before it is sent: the same content is the same dataset, whatever its path.
_KNOWN_BY_CONTENT_BYTES = 64 << 20
# Longer than a server takes to notice that the previous stream has died (ABORTED until then).
_SECONDS_WITHOUT_PROGRESS = 60.0
_METHOD = "/finetuneflow.v1.DatasetService/UploadDataset"


class FileUpload:
    """The upload of one file: `run` it inside a `with` statement."""

    def __init__(
        self,
        calls: PlainCalls,
        stub: Any,
        file: Path,
        display_name: str,
        request_id: str,
        progress: Progress | None,
    ) -> None:
        self._calls = calls
        self._stub = stub
        # The requests are framed by hand: a message would copy each chunk twice more.
        self._send = calls.channel.stream_unary(
            _METHOD,
            request_serializer=_serialized,
            response_deserializer=pb.UploadDatasetResponse.FromString,
        )
        self._path = file
        self._state = _state(file.stat())
        self._size = file.stat().st_size
        self._display_name = display_name
        self._request_id = request_id
        self._progress = progress
        self._hashing = Hashing(file, self._size)

    def run(self) -> Dataset:
        """Uploads the file and returns the dataset."""
        header = pb.UploadDatasetHeader(
            filename=self._path.name,
            display_name=self._display_name,
            size_bytes=self._size,
            request_id=self._request_id or self._default_request_id(),
            sha256_follows=True,
        )
        patience = Patience(_SECONDS_WITHOUT_PROGRESS)
        furthest = 0
        began_anew = False
        while True:
            held = self._received_bytes(header)
            if isinstance(held, Dataset):
                return held
            if held > furthest:
                furthest = held
                patience.reset()
            header.offset = held
            stream = _Stream()
            try:
                response = self._calls.stream(self._send, self._messages(header, stream))
            except grpc.RpcError as rpc_error:
                stream.ended = True
                if stream.failure is not None:
                    raise stream.failure from None
                error = self._calls.error(rpc_error)
                if held and not began_anew and isinstance(error, InvalidArgument) and error.reason == "SHA256_MISMATCH":
                    # The kept bytes were damaged, or the file has changed; the server has deleted them.
                    began_anew = True
                    continue
                delay = patience.next_delay() if _is_resumable(error) else None
                if delay is None:
                    raise error from rpc_error
                time.sleep(delay)
            else:
                dataset: Dataset = response.dataset
                return dataset

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hashing.__exit__(kind, error, trace)

    def _received_bytes(self, header: pb.UploadDatasetHeader) -> Dataset | int:
        """Returns the number of bytes that the server has, or the dataset if the upload is complete."""
        request = pb.GetUploadRequest(request_id=header.request_id)
        answer = self._calls.call(self._stub.GetUpload, request)
        if not answer.HasField("dataset"):
            received: int = answer.received_bytes
            return received if received <= self._size else 0
        dataset: Dataset = answer.dataset
        if dataset.sha256 == self._hashing.hexdigest():
            return dataset
        if not self._request_id:
            header.request_id = uuid.uuid4().hex
        # With the caller's own request_id the server refuses the upload, with a better message.
        return 0

    def _messages(self, header: pb.UploadDatasetHeader, stream: _Stream) -> Iterator[Any]:
        try:
            yield _serialized(pb.UploadDatasetRequest(header=header))
            sent = header.offset
            with self._path.open("rb", buffering=0) as source:
                source.seek(sent)
                while sent < self._size and not stream.ended:
                    chunk = source.read(min(CHUNK_BYTES, self._size - sent))
                    if not chunk:
                        raise self._file_changed()
                    yield frame(chunk)
                    sent += len(chunk)
                    if self._progress is not None and not stream.ended:
                        self._progress(sent, self._size)
                sha256 = self._hashing.hexdigest()
                if _state(os.fstat(source.fileno())) != self._state:
                    raise self._file_changed()
            yield _serialized(pb.UploadDatasetRequest(sha256=sha256))
        except Exception as error:
            stream.failure = error
            raise

    def _file_changed(self) -> IntegrityError:
        return IntegrityError(
            f"{self._path} changed during the upload.", advice="Upload it again when no process writes to it."
        )

    def _default_request_id(self) -> str:
        identity = [self._path.name, self._display_name]
        if self._size <= _KNOWN_BY_CONTENT_BYTES:
            identity += ["content", self._hashing.hexdigest()]
        else:
            identity += ["file", socket.gethostname(), str(self._path.resolve()), *map(str, self._state)]
        return f"file-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()}"


class _Stream:
    """State of one stream. grpc swallows exceptions of the request iterator, and may call it once more after the
    end."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.ended = False


def _state(status: os.stat_result) -> tuple[int, ...]:
    """Returns the attributes of a file that change when it is written."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _serialized(message: pb.UploadDatasetRequest | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _is_resumable(error: ApiError) -> bool:
    return isinstance(error, Unavailable | DeadlineExceeded | OutOfRange) or error.code is grpc.StatusCode.ABORTED
