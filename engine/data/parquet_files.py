"""Reads rows from Parquet, in small batches whatever the size of the row groups."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from engine.data.memory_limit import memory_limit
from engine.data.rows import MAX_ROW_BYTES, Row, RowProblem, too_long
from engine.data.streams import bomb, unreadable

_BATCH_ROWS = 64
"""Maximum rows per batch. One stored cell may be the value of every row, so a decoded batch must stay small."""
_BATCH_BYTES = 64 << 20
"""Approximate maximum size of a batch, by the sizes that the file declares."""
_MAX_BYTES = 512 << 20
"""Memory that decoding one batch may take. What a file declares about its sizes need not be true, and a page of zeros
compresses to almost nothing."""
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
        with memory_limit(_MAX_BYTES):
            metadata = pyarrow.parquet.read_metadata(path, memory_map=True)
        # A text that is stored once for many rows stays one object in memory.
        texts = _texts(metadata.schema)
        with pyarrow.parquet.ParquetFile(path, memory_map=True, read_dictionary=texts) as file:
            groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
            # Pages are decompressed whole, so a file whose metadata declares too many bytes is refused before it is
            # read.
            if sum(group.total_byte_size for group in groups) > limit:
                raise bomb(path.name, limit, _ADVICE)
            names = file.schema_arrow.names
            if len(set(names)) != len(names):
                raise unreadable(path.name, "has two columns with the same name")
            row_bytes = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
            num_rows = min(max(_BATCH_BYTES // max(row_bytes, 1), 1), _BATCH_ROWS)
            batches = file.iter_batches(num_rows, use_threads=False)
            while (batch := _next(batches)) is not None:
                sizes = sum((_sizes(column) for column in batch.columns), numpy.zeros(batch.num_rows, numpy.int64))
                for index, size in enumerate(sizes.tolist()):
                    number += 1
                    unpacked += size
                    if unpacked > limit:
                        raise bomb(path.name, limit, _ADVICE)
                    # As Python objects, the values of a long row would take many times its size.
                    yield too_long(number) if size > MAX_ROW_BYTES else _row(number, batch, index)
    except MemoryError as error:
        raise bomb(f"{path.name}, from row {number + 1} on,", _MAX_BYTES, _ADVICE) from error
    except (pyarrow.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise unreadable(path.name, f"cannot be read as Parquet from row {number + 1} on: {said}") from error


def _next(batches: Iterator[Any]) -> Any:
    with memory_limit(_MAX_BYTES):
        return next(batches, None)


def _texts(schema: Any) -> list[str]:
    """Returns the paths of all text columns, including those inside lists and objects."""
    columns = (schema.column(index) for index in range(len(schema)))
    return [column.path for column in columns if column.logical_type.type == "STRING"]


def _row(number: int, batch: Any, index: int) -> Row | RowProblem:
    values = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = column[index].as_py()
        except (UnicodeDecodeError, ValueError) as error:
            reason = "NOT_UTF8" if isinstance(error, UnicodeDecodeError) else "NOT_TEXT"
            return RowProblem(number, name, reason, f"column {name[:80]} cannot be read: {error}")
    return Row(number, values, is_padded=True)


def _sizes(array: Any) -> NDArray[numpy.int64]:
    """Returns the size of each value of an Arrow array, without converting it: the bytes of its texts, and one for each
    entry of its lists."""
    import pyarrow
    from pyarrow import compute, types

    kind = array.type
    none = numpy.zeros(len(array), numpy.int64)
    if isinstance(array, pyarrow.ExtensionArray):
        return _sizes(array.storage)
    if types.is_dictionary(kind):
        if not len(array.dictionary):
            return none
        indices = array.indices.fill_null(0).to_numpy(zero_copy_only=False)
        found: NDArray[numpy.int64] = _sizes(array.dictionary)[indices]
        found[array.is_null().to_numpy(zero_copy_only=False)] = 0
        return found
    if types.is_struct(kind):
        return sum((_sizes(part) for part in array.flatten()), none)
    if types.is_fixed_size_list(kind):
        counts = _integers(compute.list_value_length(array))
        ends = counts.cumsum()
        return _of_lists(_sizes(array.flatten()), ends - counts, ends)
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        starts = _integers(array.offsets)
        return _of_lists(_sizes(array.values), starts, starts + _integers(array.sizes))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind):
        offsets = _integers(array.offsets)
        first, last = int(offsets[0]), int(offsets[-1])
        parts = (array.keys, array.items) if types.is_map(kind) else (array.values,)
        inner = sum((_sizes(part.slice(first, last - first)) for part in parts), numpy.zeros(last - first, numpy.int64))
        return _of_lists(inner, offsets[:-1] - first, offsets[1:] - first)
    if types.is_string_view(kind) or types.is_binary_view(kind):
        # Each value has 16 bytes, of which the first four are its length.
        views = numpy.frombuffer(array.buffers()[1], numpy.int32).reshape(-1, 4)
        lengths: NDArray[numpy.int64] = views[array.offset : array.offset + len(array), 0].astype(numpy.int64)
        return lengths
    if _has_bytes(kind):
        return _integers(compute.binary_length(array))
    return none


def _of_lists(
    sizes: NDArray[numpy.int64], starts: NDArray[numpy.int64], ends: NDArray[numpy.int64]
) -> NDArray[numpy.int64]:
    before = numpy.zeros(len(sizes) + 1, numpy.int64)
    numpy.cumsum(sizes, out=before[1:])
    found: NDArray[numpy.int64] = ends - starts + before[ends] - before[starts]
    return found


def _integers(array: Any) -> NDArray[numpy.int64]:
    found: NDArray[numpy.int64] = array.fill_null(0).to_numpy(zero_copy_only=False).astype(numpy.int64)
    return found


def _has_bytes(kind: Any) -> bool:
    from pyarrow import types

    checks = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return types.is_fixed_size_binary(kind) or any(check(kind) for check in checks)
