"""Reads rows from delimited text. Cells stay text: formulas are never evaluated."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from typing import IO

from engine.data.rows import MAX_ROW_BYTES, Row, RowProblem, too_long
from engine.errors import JobError

_DELIMITERS = ",;\t|"
_QUOTED = re.compile(r'"[^"]*"')
_SEPARATOR = re.compile(r'"?sep=([^\w\s"]|\t)"?[,;\t|]*\s*', re.IGNORECASE)
"""The line that tells Excel the delimiter; it is not the header."""


def read_csv(file: IO[bytes], name: str, delimiter: str = "") -> Iterator[Row | RowProblem]:
    """Yields the rows below a header line. Without a `delimiter`, it is the one that Excel's line `sep=;` names, or the
    most frequent of , ; tab | in the header.

    Raises JobError("BAD_HEADER") if the header does not name each column once.
    """
    # Bytes that are not UTF-8 become lone surrogates: only their row is refused.
    lines = _Lines(io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline=""))
    csv.field_size_limit(MAX_ROW_BYTES)
    try:
        header_line = next(lines, "")
        if named := _SEPARATOR.fullmatch(header_line):
            delimiter = named[1]
            header_line = next(lines, "")
        if not header_line.strip():
            return
        if not delimiter:
            bare = _QUOTED.sub("", header_line)
            delimiter = max(_DELIMITERS, key=bare.count)
        columns = _columns(header_line, delimiter, lines, name)
    except csv.Error as error:
        raise _bad_header(name, f"cannot be read: {error}") from error
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        number = lines.number + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if lines.too_long:
                yield too_long(lines.number)
                lines.skip()
            else:
                yield _unreadable(number, error)
            continue
        if cells is None:
            return
        if cells:
            yield _row(number, columns, cells)


def _columns(line: str, delimiter: str, lines: "_Lines", name: str) -> list[str]:
    try:
        columns = next(csv.reader(_then(line, lines), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise _bad_header(name, f"cannot be read: {error}") from error
    columns = [column.strip() or f"column {index}" for index, column in enumerate(columns, 1)]
    twice, count = Counter(columns).most_common(1)[0]
    if count > 1:
        raise _bad_header(name, f"has the column {twice[:80]!r} twice")
    if any("\udc80" <= character <= "\udcff" for column in columns for character in column):
        raise _bad_header(name, "is not UTF-8; save the file as UTF-8")
    if any("\0" in column for column in columns):
        raise _bad_header(name, "has NUL characters; the file is not text")
    return columns


def _row(number: int, columns: list[str], cells: list[str]) -> Row | RowProblem:
    if len(cells) != len(columns):
        if any("\0" in cell for cell in cells):
            return RowProblem(number, "", "NUL_CHARACTER", "has a NUL character; remove it")
        found = "1 cell" if len(cells) == 1 else f"{len(cells):,} cells"
        message = f"has {found} but the header has {len(columns):,}; quote cells that contain the delimiter"
        return RowProblem(number, "", "WRONG_NUMBER_OF_CELLS", message)
    for column, cell in zip(columns, cells, strict=True):
        if not cell.isascii() and any("\udc80" <= character <= "\udcff" for character in cell):
            message = f"column {column[:80]} is not UTF-8; save the file as UTF-8"
            return RowProblem(number, column, "NOT_UTF8", message)
    return Row(number, dict(zip(columns, cells, strict=True)))


def _unreadable(number: int, error: csv.Error) -> RowProblem:
    said = str(error)
    if "NUL" in said:
        return RowProblem(number, "", "NUL_CHARACTER", "has a NUL character; remove it")
    if "unexpected end" in said or "limit" in said:
        return RowProblem(number, "", "QUOTE_NOT_CLOSED", 'opens a quote that is never closed; write a " inside as ""')
    return RowProblem(number, "", "BAD_QUOTING", f'{said}; write a " inside a quoted cell as ""')


def _bad_header(name: str, problem: str) -> JobError:
    return JobError("BAD_HEADER", f"The header of {name} {problem}.", "Name each column once, in the first line.")


def _then(line: str, lines: "_Lines") -> Iterator[str]:
    yield line
    yield from lines


class _Lines:
    """The lines of a table, counted. A line that is too long raises csv.Error."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.number = 0
        self.too_long = False

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._text.readline(MAX_ROW_BYTES + 1)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) > MAX_ROW_BYTES:
            self.too_long = True
            raise csv.Error("line too long")
        return line

    def skip(self) -> None:
        """Skips the rest of a line that was too long."""
        self.too_long = False
        while (line := self._text.readline(1 << 16)) and not line.endswith(("\n", "\r")):
            pass
