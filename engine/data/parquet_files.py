"""Reads rows from Parquet, in small batches whatever the size of the row groups."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.data.rows import MAX_ROW_BYTES, Row, RowProblem, too_long
from engine.data.streams import bomb, unreadable

_BATCH_ROWS = 64
"""Rows per batch. One stored cell may be the value of every row, so a decoded batch must stay small."""
_FREE_BYTES = 1 << 30
_MAX_RATIO = 2000
"""Maximum ratio of decoded to stored bytes. A table stores a text that many rows share only once: a system prompt of
some kilobytes takes a thousand times as much space in the rows as in the file. Decoding it takes time but no memory;
this limits the time."""
_ADVICE = "Split the file, or remove a long text that all rows share: system_prompt of the job replaces such a column."


def read_parquet(path: Path) -> Iterator[Row | RowProblem]:
    """Yields the rows in order. Raises JobError: UNREADABLE_FILE if the file is damaged, incomplete, or not Parquet;
    DECOMPRESSION_BOMB."""
    import pyarrow
    import pyarrow.parquet

    number = unpacked = 0
    limit = max(_FREE_BYTES, path.stat().st_size * _MAX_RATIO)
    try:
        # A text that is stored once for many rows stays one object in memory.
        texts = _texts(pyarrow.parquet.read_metadata(path, memory_map=True).schema)
        with pyarrow.parquet.ParquetFile(path, memory_map=True, read_dictionary=texts) as file:
            groups = (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))
            # Pages are decompressed whole, so a file whose metadata declares too many bytes is refused before it is
            # read.
            if sum(group.total_byte_size for group in groups) > limit:
                raise bomb(path.name, limit, _ADVICE)
            names = file.schema_arrow.names
            if len(set(names)) != len(names):
                raise unreadable(path.name, "has two columns with the same name")
            for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
                for index in range(batch.num_rows):
                    number += 1
                    found, size = _row(number, batch, index)
                    unpacked += size
                    if unpacked > limit:
                        raise bomb(path.name, limit, _ADVICE)
                    yield found
    except (pyarrow.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise unreadable(path.name, f"cannot be read as Parquet from row {number + 1} on: {said}") from error


def _texts(schema: Any) -> list[str]:
    """Returns the paths of all text columns, including those inside lists and objects."""
    columns = (schema.column(index) for index in range(len(schema)))
    return [column.path for column in columns if column.logical_type.type == "STRING"]


def _row(number: int, batch: Any, index: int) -> tuple[Row | RowProblem, int]:
    """Returns the row, or its problem, and the size of its texts in bytes."""
    values = {}
    size = 0
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        cell = column[index]
        try:
            values[name] = cell.as_py()
        except (UnicodeDecodeError, ValueError) as error:
            reason = "NOT_UTF8" if isinstance(error, UnicodeDecodeError) else "NOT_TEXT"
            return RowProblem(number, name, reason, f"column {name[:80]} cannot be read: {error}"), size
        size += _size(values[name])
    return too_long(number) if size > MAX_ROW_BYTES else Row(number, values, is_padded=True), size


def _size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, list) and value and not isinstance(value[0], int | float):
        return sum(map(_size, value))
    return 0
