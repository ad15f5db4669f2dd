"""Uploads of datasets: checks the header, and writes and verifies the bytes."""

import asyncio
import errno
import json
import logging
import re
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import ParamSpec

from google.protobuf.message import DecodeError

from chassis.errors import (
    Aborted,
    InvalidArgument,
    OutOfRange,
    ResourceExhausted,
    ServiceError,
    Unavailable,
    Violation,
    unreadable_request,
)
from chassis.failpoints import failpoint
from chassis.store.artifact_store import ArtifactStore, AtomicWriter
from chassis.store.partials import WriteInProgress, WrongOffset
from engine.data.endings import check_upload
from finetuneflow.chunks import CHUNK_BYTES, chunk_of
from finetuneflow.v1.dataset_service_pb2 import UploadDatasetHeader, UploadDatasetRequest
from gateway.uncancellable import in_thread

P = ParamSpec("P")
log = logging.getLogger(__name__)

Message = UploadDatasetRequest | memoryview
"""A message of an upload's stream; a memoryview holds the bytes of a chunk."""

# Bytes synced during the upload need not be synced at its end.
_SYNC_BYTES = 64 << 20
_SWEEP_SECONDS = 3_600.0
# An upload that waits for longer writes what it has gathered: idle uploads hold no chunks in memory.
_IDLE_SECONDS = 1.0
_MAX_NAME_CHARACTERS = 128
_MAX_FILENAME_BYTES = 255
_FILENAME = "header.filename"


@dataclass(frozen=True)
class UploadLimits:
    """Limits of one upload."""

    max_bytes: int = 64 << 30
    """Largest file that is accepted."""
    batch_bytes: int = 4 << 20
    """Chunks are gathered up to this size: one hop to a thread for each would cost more than hashing and writing it."""
    stall_seconds: float = 60.0
    """An upload is ended when nothing arrives for this long: it would keep out others, and its caller's next stream."""


@dataclass(frozen=True)
class Header:
    """A checked header."""

    filename: str
    display_name: str
    size_bytes: int | None
    sha256: str
    """Lower case; empty if the caller does not know it."""
    request_id: str | None
    offset: int
    sha256_follows: bool

    @property
    def resumable(self) -> bool:
        """True if received bytes are kept when the stream breaks."""
        return bool(self.request_id and self.size_bytes and (self.sha256 or self.sha256_follows))


def upload_key(tenant: str, request_id: str, sha256: str) -> str:
    """Returns the key under which the bytes of an interrupted upload are kept."""
    return json.dumps([tenant, request_id, sha256.lower()])


def read_message(wire: bytes) -> Message:
    """Deserialises a message without copying a chunk. Raises InvalidArgument if it is none."""
    try:
        chunk = chunk_of(wire)
        return UploadDatasetRequest.FromString(wire) if chunk is None else chunk
    except DecodeError as error:
        raise unreadable_request() from error


async def received(messages: AsyncIterator[Message], stall_seconds: float) -> AsyncGenerator[Message | None]:
    """Yields the messages of a stream, and None when none has come for a second.

    Raises Unavailable when none has come for `stall_seconds`.
    """
    while True:
        reading = asyncio.ensure_future(anext(messages))
        try:
            idle = min(_IDLE_SECONDS, stall_seconds)
            if not (await asyncio.wait([reading], timeout=idle))[0]:
                yield None
                await asyncio.wait([reading], timeout=stall_seconds - idle)
            if not reading.done():
                raise Unavailable(
                    "UPLOAD_STALLED",
                    f"The upload received nothing for {stall_seconds:g} seconds, the limit of this gateway. "
                    "Continue it if it has a request_id, size_bytes and a SHA-256; otherwise start it again.",
                    metadata={"stall_seconds": f"{stall_seconds:g}"},
                )
        finally:
            reading.cancel()
        if isinstance(reading.exception(), StopAsyncIteration):
            return
        # No variable of this frame keeps the message while the next one is waited for.
        yield reading.result()


def check_header(header: UploadDatasetHeader, max_bytes: int) -> Header:
    """Checks a header. Raises InvalidArgument with all violations, JobError for a file that cannot hold rows, or
    ResourceExhausted if it is too large."""
    violations: list[Violation] = []

    def refuse(field: str, description: str) -> None:
        violations.append(Violation(f"header.{field}", description))

    filename = re.split(r"[/\\]", header.filename)[-1]
    if not filename or filename in (".", ".."):
        refuse("filename", "the name of the file is required")
    elif _has_control(filename):
        refuse("filename", "control characters are not allowed")
    elif len(filename.encode()) > _MAX_FILENAME_BYTES:
        refuse("filename", f"{len(filename.encode())} bytes; at most {_MAX_FILENAME_BYTES} are allowed")
    if len(header.display_name) > _MAX_NAME_CHARACTERS:
        refuse("display_name", f"{len(header.display_name)} characters; at most {_MAX_NAME_CHARACTERS} are allowed")
    elif _has_control(header.display_name):
        refuse("display_name", "control characters are not allowed")
    if header.HasField("size_bytes") and header.size_bytes < 0:
        refuse("size_bytes", "can't be negative")
    if header.sha256 and not is_sha256(header.sha256):
        refuse("sha256", "must be 64 hexadecimal digits, or empty when not known")
    elif header.sha256 and header.sha256_follows:
        refuse("sha256_follows", "must be false if sha256 is set")
    if len(header.request_id) > _MAX_NAME_CHARACTERS:
        refuse("request_id", f"{len(header.request_id)} characters; at most {_MAX_NAME_CHARACTERS} are allowed")
    elif _has_control(header.request_id):
        refuse("request_id", "control characters are not allowed")
    if header.offset < 0:
        refuse("offset", "can't be negative")
    elif header.offset and not (
        header.request_id and header.HasField("size_bytes") and (header.sha256 or header.sha256_follows)
    ):
        refuse("offset", "must be 0 unless request_id, size_bytes, and sha256 or sha256_follows are set")
    if violations:
        message = "; ".join(f"{v.field}: {v.description}" for v in violations) + "."
        raise InvalidArgument("INVALID_HEADER", message, violations)
    size_bytes = header.size_bytes if header.HasField("size_bytes") else None
    check_upload(filename, size_bytes, _FILENAME)
    if size_bytes is not None and size_bytes > max_bytes:
        raise too_large(max_bytes)
    return Header(
        filename=filename,
        display_name=header.display_name or filename,
        size_bytes=size_bytes,
        sha256=header.sha256.lower(),
        request_id=header.request_id or None,
        offset=header.offset,
        sha256_follows=header.sha256_follows,
    )


def is_sha256(text: str) -> bool:
    return re.fullmatch(r"[0-9a-fA-F]{64}", text) is not None


def _has_control(text: str) -> bool:
    # Format characters (Cf) hide or reorder the characters beside them: a name could be displayed as another one.
    return any(unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") for character in text)


def too_large(max_bytes: int) -> ResourceExhausted:
    return ResourceExhausted(
        "DATASET_TOO_LARGE",
        f"The file is larger than {max_bytes:,} bytes, the limit of this server's operator.",
        metadata={"max_bytes": str(max_bytes)},
    )


class Upload:
    """One upload into the store: call `begin`, `receive`, `commit`, and in any case `end`."""

    def __init__(self, store: ArtifactStore, tenant: str, path: str, header: Header, limits: UploadLimits) -> None:
        """`path` is below the tenant."""
        self._store = store
        self._tenant = tenant
        self._path = f"{tenant}/{path}"
        self._header = header
        self._limits = limits
        self._writer: AtomicWriter | None = None
        self._batch: list[bytes | memoryview] = []
        self._work: list[asyncio.Future[None]] = []
        self._syncing: list[asyncio.Future[None]] = []
        self._unsynced = 0
        self._followed = ""
        self._worthless = False
        self.size_bytes = header.offset
        """Bytes received so far, by this stream and earlier ones."""
        self.committed = False
        """True if the file may exist under its path."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes written, in hexadecimal."""
        return self._opened.sha256

    async def begin(self) -> None:
        """Takes exclusive hold of this upload. Raises Aborted or OutOfRange."""
        try:
            await in_thread(self._begin)
        except WriteInProgress as error:
            raise Aborted(
                "UPLOAD_IN_PROGRESS", "Another stream is writing this upload; try again when it has ended."
            ) from error
        except WrongOffset as error:
            problem = f"{error.received_bytes} bytes were received; continue at that offset, or start again at 0"
            raise OutOfRange(
                "WRONG_OFFSET",
                f"The upload cannot continue at offset {self._header.offset}: {problem}.",
                [Violation("header.offset", problem)],
                {"received_bytes": str(error.received_bytes)},
            ) from error
        except OSError as error:
            raise storage_full(error) from error

    async def receive(self, messages: AsyncIterator[Message | None]) -> None:
        """Writes every chunk, then compares length and hash with the announced ones.

        Threads write and hash one batch while the next is received: at most two batches are in memory. None stands for
        a pause, in which no batch is kept.
        """
        batched = 0
        async for message in messages:
            chunk = None if message is None else self._checked(message)
            if chunk is not None:
                self._batch.append(chunk)
                batched += len(chunk)
            if message is None or batched >= self._limits.batch_bytes:
                await self._start_batch()
                batched = 0
        await self._start_batch()
        await self._wait_for_batch()
        self._check_whole()

    async def commit(self) -> None:
        """Makes the complete file visible under its path."""
        await self._wait_for_batch(synced=True)
        self.committed = True
        try:
            await in_thread(self._opened.commit)
        except OSError as error:
            raise self._failed(error) from error

    async def end(self, *, recorded: bool, wanted: bool = True) -> None:
        """Closes the file. Call it once; it must not be cancelled.

        Unless a row names the file (`recorded`), it is deleted. Bytes from which a later stream can continue are kept
        if `wanted`.
        """
        if self._writer is None:
            return
        try:
            if not recorded:
                await self._start_batch()
        except ServiceError:
            wanted = False
        finally:
            pending = [*self._work, *self._syncing]
            if pending:
                await asyncio.wait(pending)
            await asyncio.to_thread(self._end, self._writer, recorded, wanted and not self._worthless)

    def _end(self, writer: AtomicWriter, recorded: bool, wanted: bool) -> None:
        keep = wanted and self._header.resumable
        try:
            if self.committed and not recorded:
                writer.retract()
                self._store.delete(self._path.rpartition("/")[0])
        finally:
            writer.suspend() if keep else writer.abort()

    def _begin(self) -> None:
        header = self._header
        if header.resumable:
            key = upload_key(self._tenant, header.request_id or "", header.sha256)
            self._writer = self._store.resume_write(self._path, key, header.offset)
        else:
            self._writer = self._store.begin_write(self._path)

    @property
    def _opened(self) -> AtomicWriter:
        if self._writer is None:
            raise RuntimeError("the upload was not started")
        return self._writer

    def _checked(self, message: Message) -> bytes | memoryview | None:
        """Returns the chunk of a message; None for the SHA-256, which is stored."""
        if self._followed:
            raise self._refused("CHUNK_UNEXPECTED", "chunk", "The SHA-256 must be the last message.")
        if isinstance(message, memoryview):
            chunk: bytes | memoryview = message
        elif message.WhichOneof("content") == "chunk":
            chunk = message.chunk
        elif message.WhichOneof("content") == "sha256" and self._header.sha256_follows:
            if not is_sha256(message.sha256):
                raise self._refused("INVALID_SHA256", "sha256", "sha256 must be 64 hexadecimal digits.")
            self._followed = message.sha256.lower()
            return None
        else:
            raise self._refused("CHUNK_EXPECTED", "chunk", "Every message after the header must carry a chunk.")
        if len(chunk) > CHUNK_BYTES:
            problem = f"A chunk has {len(chunk)} bytes; at most {CHUNK_BYTES} are allowed."
            raise self._refused("CHUNK_TOO_LARGE", "chunk", problem)
        self.size_bytes += len(chunk)
        if self.size_bytes > self._limits.max_bytes:
            self._worthless = True
            raise too_large(self._limits.max_bytes)
        announced = self._header.size_bytes
        if announced is not None and self.size_bytes > announced:
            raise self._mismatch("size_bytes", f"more than the announced {announced} bytes were received")
        return chunk

    async def _start_batch(self) -> None:
        """Passes the batch to the threads once they have completed the previous one."""
        await self._wait_for_batch()
        if not self._batch:
            return
        failpoint("upload.received")
        batch, self._batch = self._batch, []
        writer = self._opened
        self._work = [_in_thread(_call_for_each, writer.append, batch), _in_thread(_call_for_each, writer.hash, batch)]
        self._unsynced += sum(map(len, batch))
        if self._unsynced >= _SYNC_BYTES:
            await self._wait_for_batch(synced=True)
            self._unsynced = 0
            self._syncing = [_in_thread(writer.sync)]

    async def _wait_for_batch(self, *, synced: bool = False) -> None:
        """Waits for the previous batch and, with `synced`, for pending syncs. Raises STORE_FULL or OSError."""
        pending = [*self._work, *(self._syncing if synced else ())]
        if not pending:
            return
        # A cancellation ends the waiting, not the threads.
        await asyncio.wait(pending)
        self._work = []
        if synced:
            self._syncing = []
        try:
            for done in pending:
                done.result()
        except OSError as error:
            raise self._failed(error) from error

    def _check_whole(self) -> None:
        header = self._header
        check_upload(header.filename, self.size_bytes, _FILENAME)
        if header.size_bytes is not None and self.size_bytes != header.size_bytes:
            # A broken stream can look like this too: the received bytes are kept.
            short = f"{self.size_bytes} bytes were received, but the client announced {header.size_bytes}"
            raise self._mismatch("size_bytes", short, worthless=False)
        if header.sha256_follows and not self._followed:
            problem = "The last message must carry the announced SHA-256."
            raise InvalidArgument("SHA256_EXPECTED", problem, [Violation("sha256", problem)])
        announced = header.sha256 or self._followed
        if announced and self.sha256 != announced:
            raise self._mismatch("sha256", f"its SHA-256 is {self.sha256}, but the client announced {announced}")

    def _mismatch(self, field: str, problem: str, *, worthless: bool = True) -> InvalidArgument:
        self._worthless |= worthless
        reason = "SIZE_MISMATCH" if field == "size_bytes" else "SHA256_MISMATCH"
        message = f"The upload of {self._header.filename} is incomplete or damaged: {problem}. Upload it again."
        return InvalidArgument(reason, message, [Violation(f"header.{field}", problem)])

    def _refused(self, reason: str, field: str, problem: str) -> InvalidArgument:
        self._worthless = True
        return InvalidArgument(reason, problem, [Violation(field, problem)])

    def _failed(self, error: OSError) -> ServiceError | OSError:
        # On a full disk the received bytes must be deleted so that others can write; unsynced bytes cannot be trusted.
        self._worthless = True
        return storage_full(error)


async def sweep_for_ever(store: ArtifactStore) -> None:
    """Removes, once an hour, the remains of uploads interrupted a day ago and of killed writers."""
    while True:
        try:
            await in_thread(store.sweep)
        except OSError as error:
            log.warning("remains of interrupted uploads cannot be removed now: %s", error)
        await asyncio.sleep(_SWEEP_SECONDS)


def _in_thread(function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[None]:
    return asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))


def _call_for_each(function: Callable[[bytes | memoryview], None], batch: list[bytes | memoryview]) -> None:
    for chunk in batch:
        function(chunk)


def storage_full(error: OSError) -> ServiceError | OSError:
    """Converts the error of a full disk to ResourceExhausted; returns any other error unchanged."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error
    return ResourceExhausted("STORE_FULL", "The server's artifact store has no room for this file.")
