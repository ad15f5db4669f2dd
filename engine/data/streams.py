"""The bytes of a file, out of whatever it is packed in, without ever holding more than a part of them."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from engine.data.endings import COMPRESSIONS
from engine.errors import JobError

_MAGIC = {
    b"\x1f\x8b": "gzip; name it .gz",
    b"\x28\xb5\x2f\xfd": "Zstandard; name it .zst",
    b"PAR1": "Parquet; name it .parquet",
    b"PK\x03\x04": "a zip archive or a spreadsheet; export its rows as .csv",
    b"BZh": "bzip2; unpack it",
    b"\xfd7zXZ\x00": "xz; unpack it",
    b"%PDF-": "a PDF document; export its text as .txt",
    b"SQLite format 3": "a database; export its rows as .csv",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"\x00\x00\xfe\xff": "UTF-32 text; save it as UTF-8",
}
_PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
_FREE_BYTES = 64 * 1024 * 1024
_MAX_RATIO = 200
"""Text shrinks to a third or a twentieth. What shrinks more than this was made to fill a disk or a day."""
UTF8_BOM = b"\xef\xbb\xbf"


@contextmanager
def open_rows(path: Path, ending: str) -> Iterator[IO[bytes]]:
    """The unpacked bytes of a file of text, without a byte-order mark.

    Raises JobError, here or while it is read: UNREADABLE_FILE (damaged, cut, or something else than its name says),
    DECOMPRESSION_BOMB.
    """
    compression = COMPRESSIONS.get(ending.rpartition(".")[2])
    with path.open("rb") as packed:
        size = path.stat().st_size
        raw: Any = packed
        if compression == "gzip":
            raw = gzip.GzipFile(fileobj=packed, mode="rb")
        elif compression == "zstd":
            # Arrow brings the codec along: no dependency of our own.
            import pyarrow

            raw = pyarrow.CompressedInputStream(pyarrow.PythonFile(packed, "r"), "zstd")
        stream = io.BufferedReader(_Bounded(raw, path.name, size, compression), 1 << 20)
        head = stream.peek(16)[:16]
        for magic, what in _MAGIC.items():
            if head.startswith(magic):
                if compression and magic in _PACKED:
                    raise unreadable(path.name, "is packed twice; unpack it once")
                raise unreadable(path.name, f"is {what}")
        if head.startswith(UTF8_BOM):
            stream.read(len(UTF8_BOM))
        yield stream


def unreadable(name: str, problem: str) -> JobError:
    """A file that is damaged as a whole."""
    return JobError(
        "UNREADABLE_FILE",
        f"{name} {problem}.",
        "Give the file the name of what is in it, or save it anew as its name says.",
    )


def unpacked_limit(size: int) -> int:
    """Bytes that a packed file of `size` bytes may unpack to."""
    return max(_FREE_BYTES, size * _MAX_RATIO)


def bomb(name: str, limit: int, advice: str = "Leave the rows unpacked.") -> JobError:
    """A file that unpacks to more than `limit` bytes."""
    return JobError(
        "DECOMPRESSION_BOMB",
        f"{name} unpacks to more than {limit:,} bytes, far more than text does.",
        advice,
    )


class _Bounded(io.RawIOBase):
    """What comes out of a packed file, as long as it is in proportion to what went in."""

    def __init__(self, raw: Any, name: str, size: int, compression: str | None) -> None:
        self._raw, self._name, self._compression = raw, name, compression
        self._left = unpacked_limit(size) if compression else None
        self._limit = self._left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._raw.read(len(buffer))
        except (OSError, EOFError, zlib.error) as error:
            if self._compression is None:
                raise
            raise unreadable(self._name, f"is damaged or cut off: {self._compression} cannot unpack it") from error
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise bomb(self._name, self._limit or 0)
        buffer[: len(data)] = data
        return len(data)
