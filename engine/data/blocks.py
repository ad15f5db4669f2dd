"""Divides a file of rows into blocks that several processes can read in parallel."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from engine.data.endings import ending_of
from engine.data.files import read_rows
from engine.data.json_files import read_json_lines, refuse_other_json
from engine.data.rows import MAX_ROW_BYTES, Row, RowProblem, size_of
from engine.data.streams import open_rows


@dataclass(frozen=True)
class BlockSize:
    """Size of the blocks of a file."""

    num_bytes: int = 512 * 1024
    """Approximate size of a block of lines. The default takes about half a second to tokenise."""
    num_rows: int = 500
    """Number of rows in a block, for formats that must be parsed to find where a row ends."""


BLOCK_SIZE = BlockSize()
_MAX_READ_BYTES = 32 << 20
"""Size of the values above which a block of parsed rows ends, so that long rows take bounded memory."""


@dataclass(frozen=True)
class Block:
    """Whole lines of JSON that are not parsed yet, or rows that are."""

    first: int = 1
    """Number of the first line."""
    lines: bytes = b""
    read: list[Row | RowProblem] = field(default_factory=list)

    def rows(self) -> Iterator[Row | RowProblem]:
        """Yields the rows of the block, as `read_rows` does."""
        yield from self.read
        for row in read_json_lines(io.BytesIO(self.lines)):
            if isinstance(row, Row):
                yield replace(row, number=row.number + self.first - 1)
            else:
                yield replace(row, row=row.row + self.first - 1)


def read_blocks(path: Path, max_length: int, size: BlockSize) -> Iterator[Block]:
    """Yields the blocks of a file, the same ones each time. Raises as `read_rows` does."""
    ending = ending_of(path.name)
    if ending and ending.partition(".")[0] in ("jsonl", "ndjson"):
        with open_rows(path, ending) as file:
            refuse_other_json(file, path.name)
            yield from _of_lines(file, size.num_bytes)
        return
    rows: list[Row | RowProblem] = []
    num_bytes = 0
    for row in read_rows(path, max_length):
        rows.append(row)
        num_bytes += size_of(row.values) if isinstance(row, Row) else 0
        if len(rows) == size.num_rows or num_bytes > _MAX_READ_BYTES:
            yield Block(read=rows)
            rows, num_bytes = [], 0
    if rows:
        yield Block(read=rows)


def _of_lines(file: IO[bytes], num_bytes: int) -> Iterator[Block]:
    first = 1
    while lines := file.read(num_bytes):
        if not lines.endswith(b"\n"):
            lines += file.readline(MAX_ROW_BYTES + 1)
        yield Block(first, lines)
        first += lines.count(b"\n")
        if not lines.endswith(b"\n"):
            # The line is too long for a row; its rest is skipped.
            first += 1
            while lines and not lines.endswith(b"\n"):
                lines = file.readline(num_bytes)
