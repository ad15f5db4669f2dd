"""Divides running text into rows of whole lines, so that a whole book is trained and not only its start."""

from collections.abc import Iterator
from dataclasses import replace
from typing import IO

from engine.data.rows import Row, RowProblem

_MIN_BYTES = 64


def read_text(file: IO[bytes], pack_bytes: int) -> Iterator[Row | RowProblem]:
    """Yields pieces of consecutive lines of up to `pack_bytes` bytes, in column `text`. A piece ends at the last blank
    line in its second half, else at its last line end; a longer line is divided at a space if it has one.

    No text is lost except blank lines at the start and end of the file.
    """
    held: Row | None = None
    for number, piece, continues in pieces(file, pack_bytes):
        for item in rows_of_piece(number, piece, continues=continues):
            if held is not None:
                yield held
            held = item if isinstance(item, Row) and item.continues else None
            if held is None:
                yield item
    if held is not None:
        # Only blank lines follow.
        yield replace(held, continues=False)


def pieces(file: IO[bytes], pack_bytes: int, first: int = 1) -> Iterator[tuple[int, bytes, bool]]:
    """Yields pieces of text whose bytes are those of the file: the number of the first line, the bytes, and True if
    more text follows. From the start of any piece, whose line is `first`, the same pieces follow."""
    limit = max(pack_bytes, _MIN_BYTES)
    pending = b""
    while True:
        data = file.read(limit * 4)
        pending += data
        while len(pending) > limit or (pending and not data):
            whole = len(pending) <= limit
            end = len(pending) if whole else _cut(pending, limit)
            piece, pending = pending[:end], pending[end:]
            yield first, piece, bool(pending.strip()) or (bool(data) and not whole)
            first += piece.count(b"\n")
        if not data:
            return


def _cut(text: bytes, limit: int) -> int:
    """Returns the end of a piece of at most `limit` bytes: after a paragraph, a line, a word or a character."""
    paragraph = text.rfind(b"\n\n", 0, limit)
    if paragraph >= limit // 2:
        return paragraph + 2
    for mark in (b"\n", b" "):
        found = text.rfind(mark, 0, limit)
        if found >= 0:
            return found + 1
    end = limit
    while end > limit - 4 and text[end] & 0xC0 == 0x80:
        end -= 1
    return end


def rows_of_piece(number: int, piece: bytes, *, continues: bool) -> Iterator[Row | RowProblem]:
    """Yields the row of a piece, or its problem; nothing for a blank piece."""
    if not piece.strip():
        return
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError as error:
        line = number + piece.count(b"\n", 0, error.start)
        yield not_utf8(line, piece[error.start])
        return
    yield Row(number, {"text": text}, continues)


def not_utf8(line: int, byte: int) -> RowProblem:
    """Returns the problem of a line with a byte that is no UTF-8."""
    return RowProblem(line, "text", "NOT_UTF8", f"not UTF-8: byte {byte:#04x}; save the file as UTF-8")
