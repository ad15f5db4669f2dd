"""Reads files of running text from any position, in chunks of whole pieces or lines."""

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

from engine.data.blocks import Block
from engine.data.endings import COMPRESSIONS, ending_of
from engine.data.files import BYTES_PER_TOKEN
from engine.data.json_files import refuse_other_json
from engine.data.rows import MAX_ROW_BYTES, Row, RowProblem
from engine.data.streams import open_rows
from engine.data.text_files import not_utf8, pieces, rows_of_piece
from engine.errors import JobError, Violation

_CHUNK_BYTES: Final = 256 * 1024
_KINDS: Final = ("txt", "jsonl", "ndjson")


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a file, and where the next chunk begins."""

    rows: list[Row | RowProblem]
    offset: int
    """Bytes before the next chunk, decompressed and without a byte-order mark."""
    line: int


def check_corpus_file(path: Path, place: str) -> None:
    """Raises JobError("NOT_A_CORPUS") for a file that cannot be read in parts."""
    if (ending_of(path.name) or "").partition(".")[0] not in _KINDS:
        raise not_a_corpus(path, place, "has a format that cannot be read in parts")


def not_a_corpus(path: Path, place: str, problem: str) -> JobError:
    """Returns the error for a file that cannot be streamed."""
    message = f"{place}: {path.name} {problem}."
    advice = "Provide running text (.txt) or rows with a `text` column (.jsonl), or remove hyperparameters.streaming."
    return JobError("NOT_A_CORPUS", message, advice, [Violation(f"spec.{place}.dataset", message)])


def read_chunks(path: Path, max_length: int, offset: int = 0, line: int = 1) -> Iterator[Chunk]:
    """Yields the chunks of a file from a position that `Chunk` named, the same ones each time. A compressed file is
    decompressed from its beginning. Raises as `read_rows` does."""
    ending = ending_of(path.name) or ""
    kind, _, compression = ending.partition(".")
    with open_rows(path, ending, 0 if compression in COMPRESSIONS else offset) as file:
        if compression in COMPRESSIONS:
            left = offset
            while left and (data := file.read(min(left, 1 << 20))):
                left -= len(data)
        if kind != "txt" and not offset:
            refuse_other_json(file, path.name)
        if kind == "txt":
            yield from _of_text(file, max_length * BYTES_PER_TOKEN, offset, line)
        else:
            yield from _of_lines(file, offset, line)


def _of_text(file: IO[bytes], pack_bytes: int, offset: int, line: int) -> Iterator[Chunk]:
    rows: list[Row | RowProblem] = []
    size = 0
    for number, piece, continues in pieces(file, pack_bytes, line):
        rows += rows_of_piece(number, piece, continues=continues)
        size += len(piece)
        line = number + piece.count(b"\n")
        if size >= _CHUNK_BYTES:
            offset += size
            yield Chunk(rows, offset, line)
            rows, size = [], 0
    if size:
        yield Chunk(rows, offset + size, line)


def _of_lines(file: IO[bytes], offset: int, line: int) -> Iterator[Chunk]:
    while lines := file.read(_CHUNK_BYTES):
        if not lines.endswith(b"\n"):
            # A longer line is a problem of its row, which ends the reading.
            lines += file.readline(MAX_ROW_BYTES + 1)
        offset += len(lines)
        rows = list(Block(line, lines).rows())
        line += lines.count(b"\n")
        yield Chunk(rows, offset, line)


@dataclass(frozen=True)
class Scan:
    """What reading a whole file without tokenising it tells."""

    num_bytes: int
    """Decompressed size, without a byte-order mark."""
    problem: RowProblem | None
    """The first line that is no UTF-8."""


def scan(path: Path, alive: Callable[[], None]) -> Scan:
    """Reads a file to its end. Raises JobError: UNREADABLE_FILE, DECOMPRESSION_BOMB."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    num_bytes, line = 0, 1
    problem: RowProblem | None = None
    with open_rows(path, ending_of(path.name) or "") as file:
        while True:
            data = file.read(1 << 20)
            alive()
            if problem is None:
                kept, _ = decoder.getstate()
                try:
                    decoder.decode(data, final=not data)
                except UnicodeDecodeError as error:
                    where = line + (kept + data).count(b"\n", 0, error.start)
                    problem = replace(not_utf8(where, (kept + data)[error.start]), column="")
            num_bytes += len(data)
            line += data.count(b"\n")
            if not data:
                return Scan(num_bytes, problem)
