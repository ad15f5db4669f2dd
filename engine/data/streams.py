"""Opens a file of text, decompressed if necessary, as a stream that holds only a part of it in memory."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.data.endings import COMPRESSIONS
from engine.errors import JobError

_MAGIC = {
    b"\x1f\x8b": "gzip; rename it to .gz",
    b"\x28\xb5\x2f\xfd": "Zstandard; rename it to .zst",
    b"PAR1": "Parquet; rename it to .parquet",
    b"PK\x03\x04": "a zip archive or a spreadsheet; export its rows as .csv",
    b"BZh": "bzip2; decompress it",
    b"\xfd7zXZ\x00": "xz; decompress it",
    b"%PDF-": "a PDF document; export its text as .txt",
    b"SQLite format 3": "a database; export its rows as .csv",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"\x00\x00\xfe\xff": "UTF-32 text; save it as UTF-8",
}
_PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
_FREE_BYTES = 64 * 1024 * 1024
_MAX_RATIO = 200
"""Text compresses 3 to 20 times. A file that compresses more was made to fill a disk or to waste time."""
UTF8_BOM = b"\xef\xbb\xbf"


@contextmanager
def open_rows(path: Path, ending: str, start: int = 0) -> Iterator["RowStream"]:
    """Opens a file of text, decompressed and without its byte-order mark; an uncompressed one at byte `start` behind
    that mark.

    Raises JobError, here or while it is read: UNREADABLE_FILE (damaged, incomplete, or of another format than its
    name says), DECOMPRESSION_BOMB.
    """
    compression = COMPRESSIONS.get(ending.rpartition(".")[2])
    with path.open("rb") as packed:
        size = path.stat().st_size
        raw: Any = packed
        if compression == "gzip":
            raw = gzip.GzipFile(fileobj=packed, mode="rb")
        elif compression == "zstd":
            # Arrow has the codec, so no other dependency is needed.
            import pyarrow

            raw = pyarrow.CompressedInputStream(pyarrow.PythonFile(packed, "r"), "zstd")
        stream = RowStream(_Bounded(raw, path.name, size, compression))
        head = stream.peek(16)[:16]
        for magic, what in _MAGIC.items():
            if head.startswith(magic):
                if compression and magic in _PACKED:
                    raise unreadable(path.name, "is compressed twice; decompress it once")
                raise unreadable(path.name, f"is {what}")
        mark = len(UTF8_BOM) if head.startswith(UTF8_BOM) else 0
        if start:
            packed.seek(mark + start)
            stream = RowStream(_Bounded(packed, path.name, size, compression))
        else:
            stream.read(mark)
        yield stream


def unreadable(
    name: str,
    problem: str,
    advice: str = "Rename the file so that its ending names its format, or save it in the format of its ending.",
) -> JobError:
    """Returns the error for a file that cannot be read at all."""
    return JobError("UNREADABLE_FILE", f"{name} {problem.rstrip('.')}.", advice)


def unpacked_limit(size: int) -> int:
    """Returns the maximum number of bytes to which a compressed file of `size` bytes may decompress."""
    return max(_FREE_BYTES, size * _MAX_RATIO)


def bomb(name: str, limit: int, advice: str = "Provide the file uncompressed.") -> JobError:
    """Returns the error for a file that decompresses to more than `limit` bytes."""
    return JobError(
        "DECOMPRESSION_BOMB",
        f"{name} decompresses to more than {limit:,} bytes, far more than text of this size does.",
        advice,
    )


class RowStream(io.BufferedReader):
    """A buffered stream of a file of rows that can look ahead any number of bytes."""

    def __init__(self, raw: "_Bounded") -> None:
        super().__init__(raw, 1 << 20)
        self._bounded = raw

    def look_ahead(self, size: int) -> bytes:
        """Returns the next `size` bytes, or all that are buffered if more; consumes nothing. Fewer at the end of the
        file."""
        head = self.peek()
        return head + self._bounded.look_ahead(size - len(head)) if len(head) < size else head


class _Bounded(io.RawIOBase):
    """A raw stream that ends with an error when it yields far more bytes than its compressed file has."""

    def __init__(self, raw: Any, name: str, size: int, compression: str | None) -> None:
        self._raw, self._name, self._compression = raw, name, compression
        self._left = unpacked_limit(size) if compression else None
        self._limit = self._left
        self._ahead = b""

    def readable(self) -> bool:
        return True

    def look_ahead(self, size: int) -> bytes:
        """Returns the next `size` bytes, fewer at the end of the file; `readinto` returns them again."""
        while len(self._ahead) < size and (data := self._next(size - len(self._ahead))):
            self._ahead += data
        return self._ahead

    def readinto(self, buffer: Any) -> int:
        if self._ahead:
            data, self._ahead = self._ahead[: len(buffer)], self._ahead[len(buffer) :]
        else:
            data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _next(self, size: int) -> bytes:
        try:
            data: bytes = self._raw.read(size)
        except (OSError, EOFError, zlib.error) as error:
            if self._compression is None:
                raise
            raise unreadable(
                self._name,
                f"is damaged or incomplete: {self._compression} cannot decompress it",
                "Copy or download the file again, or compress it again.",
            ) from error
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise bomb(self._name, self._limit or 0)
        return data
