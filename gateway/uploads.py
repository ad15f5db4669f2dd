"""What becomes of an upload: its header is checked, its bytes are checked on their way to the store."""

import errno
import re
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import dataclass

from chassis.artifacts import ArtifactStore, AtomicWriter
from chassis.errors import InvalidArgument, ResourceExhausted, ServiceError, Unimplemented, Violation
from finetuneflow.v1.dataset_service_pb2 import UploadDatasetHeader, UploadDatasetRequest
from gateway.waiting import in_thread

ENDINGS = ("jsonl",)
"""File name endings that preflight can read."""
MAX_CHUNK_BYTES = 1 << 20
# Small chunks are gathered: one hop to a thread for each would cost more than hashing and writing it.
_BATCH_BYTES = 4 << 20
_MAX_NAME_CHARACTERS = 128
_MAX_FILENAME_BYTES = 255


@dataclass(frozen=True)
class Header:
    """A checked header."""

    filename: str
    display_name: str
    size_bytes: int | None
    sha256: str
    """Lower-case; empty when the caller does not know it."""
    request_id: str | None


def check_header(header: UploadDatasetHeader, max_bytes: int) -> Header:
    """Raises one InvalidArgument with everything that is wrong, or what else forbids the upload."""
    violations: list[Violation] = []

    def refuse(field: str, description: str) -> None:
        violations.append(Violation(f"header.{field}", description))

    filename = re.split(r"[/\\]", header.filename)[-1]
    ending = filename.rpartition(".")[2] if "." in filename else ""
    if not filename or filename in (".", ".."):
        refuse("filename", "the name of the file is required")
    elif _has_control(filename):
        refuse("filename", "control characters are not allowed")
    elif len(filename.encode()) > _MAX_FILENAME_BYTES:
        refuse("filename", f"{len(filename.encode())} bytes; at most {_MAX_FILENAME_BYTES} are allowed")
    elif ending.lower() not in ENDINGS:
        accepted = ", ".join(f".{known}" for known in ENDINGS)
        refuse("filename", f"{filename!r} does not end in one of: {accepted}")
    if len(header.display_name) > _MAX_NAME_CHARACTERS:
        refuse("display_name", f"{len(header.display_name)} characters; at most {_MAX_NAME_CHARACTERS} are allowed")
    elif _has_control(header.display_name):
        refuse("display_name", "control characters are not allowed")
    if header.HasField("size_bytes") and header.size_bytes < 0:
        refuse("size_bytes", "can't be negative")
    if header.sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", header.sha256):
        refuse("sha256", "must be 64 hexadecimal digits, or empty when not known")
    if len(header.request_id) > _MAX_NAME_CHARACTERS:
        refuse("request_id", f"{len(header.request_id)} characters; at most {_MAX_NAME_CHARACTERS} are allowed")
    elif _has_control(header.request_id):
        refuse("request_id", "control characters are not allowed")
    if header.offset < 0:
        refuse("offset", "can't be negative")
    if violations:
        message = "; ".join(f"{v.field}: {v.description}" for v in violations)
        raise InvalidArgument("INVALID_HEADER", message, violations)
    if header.offset:
        raise Unimplemented(
            "RESUME_NOT_IMPLEMENTED",
            "A cut upload can't be gone on with yet: send the file from its start, with offset 0.",
            [Violation("header.offset", "must be 0")],
        )
    if header.HasField("size_bytes"):
        if header.size_bytes == 0:
            raise empty_file(filename)
        if header.size_bytes > max_bytes:
            raise too_large(max_bytes)
    return Header(
        filename=filename,
        display_name=header.display_name or filename,
        size_bytes=header.size_bytes if header.HasField("size_bytes") else None,
        sha256=header.sha256.lower(),
        request_id=header.request_id or None,
    )


def _has_control(text: str) -> bool:
    # Format characters (Cf) hide or reorder what is shown beside them: `gpj.lnosj` could read as something else.
    return any(unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") for character in text)


def empty_file(filename: str) -> InvalidArgument:
    message = f"{filename} is empty: there is nothing to train on"
    return InvalidArgument("EMPTY_FILE", message, [Violation("header.filename", message)])


def too_large(max_bytes: int) -> ResourceExhausted:
    return ResourceExhausted(
        "DATASET_TOO_LARGE",
        f"The file is larger than {max_bytes:,} bytes, the limit of this server's operator.",
        metadata={"max_bytes": str(max_bytes)},
    )


class Upload:
    """The file behind a header, on its way into the store. Whoever receives must `commit` or `abort`."""

    def __init__(self, store: ArtifactStore, path: str, header: Header, max_bytes: int) -> None:
        self._store = store
        self._path = path
        self._header = header
        self._max_bytes = max_bytes
        self._writer: AtomicWriter | None = None
        self.size_bytes = 0
        """Received so far."""
        self.committed = False
        """Whether the file may be under its path."""

    @property
    def sha256(self) -> str:
        """Of what was written, hexadecimal."""
        return self._writer.sha256 if self._writer is not None else ""

    async def receive(self, requests: AsyncIterator[UploadDatasetRequest]) -> None:
        """Writes every chunk, then checks length and hash against the header."""
        batch: list[bytes] = []
        batched = 0
        async for request in requests:
            chunk = self._checked(request)
            batch.append(chunk)
            batched += len(chunk)
            if batched >= _BATCH_BYTES:
                await self._write(batch)
                batch, batched = [], 0
        if batch:
            await self._write(batch)
        self._check_whole()

    async def commit(self) -> None:
        """The file appears under its path, whole."""
        if self._writer is None:
            raise RuntimeError("nothing was received")
        self.committed = True
        try:
            await in_thread(self._writer.commit)
        except OSError as error:
            raise storage_full(error) from error

    async def abort(self) -> None:
        """Nothing is left of what was written."""
        if self._writer is not None:
            await in_thread(self._writer.abort)

    def _checked(self, request: UploadDatasetRequest) -> bytes:
        if request.WhichOneof("content") != "chunk":
            message = "every message after the header must carry a chunk"
            raise InvalidArgument("CHUNK_EXPECTED", message, [Violation("chunk", message)])
        chunk = request.chunk
        if len(chunk) > MAX_CHUNK_BYTES:
            message = f"a chunk of {len(chunk)} bytes; at most {MAX_CHUNK_BYTES} are allowed"
            raise InvalidArgument("CHUNK_TOO_LARGE", message, [Violation("chunk", message)])
        self.size_bytes += len(chunk)
        if self.size_bytes > self._max_bytes:
            raise too_large(self._max_bytes)
        if self._header.size_bytes is not None and self.size_bytes > self._header.size_bytes:
            raise self._mismatch("size_bytes", f"more than the announced {self._header.size_bytes} bytes arrived")
        return chunk

    async def _write(self, batch: list[bytes]) -> None:
        try:
            await in_thread(self._write_blocking, batch)
        except OSError as error:
            raise storage_full(error) from error

    def _write_blocking(self, batch: list[bytes]) -> None:
        if self._writer is None:
            self._writer = self._store.begin_write(self._path)
        for chunk in batch:
            self._writer.write(chunk)

    def _check_whole(self) -> None:
        header = self._header
        if not self.size_bytes:
            raise empty_file(header.filename)
        if header.size_bytes is not None and self.size_bytes != header.size_bytes:
            raise self._mismatch("size_bytes", f"{self.size_bytes} bytes arrived, {header.size_bytes} were announced")
        if header.sha256 and self.sha256 != header.sha256:
            raise self._mismatch("sha256", f"what arrived has {self.sha256}, {header.sha256} was announced")

    def _mismatch(self, field: str, problem: str) -> InvalidArgument:
        reason = "SIZE_MISMATCH" if field == "size_bytes" else "SHA256_MISMATCH"
        message = f"{self._header.filename} did not arrive as announced: {problem}"
        return InvalidArgument(reason, message, [Violation(f"header.{field}", problem)])


def storage_full(error: OSError) -> ServiceError | OSError:
    """A full disk is a limit that callers are told of; anything else stays what it is."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error
    return ResourceExhausted("STORAGE_FULL", "The server's artifact store has no room for this file.")
