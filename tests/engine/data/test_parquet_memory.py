"""Reading a small Parquet file takes little memory, whatever its pages decompress to and its lists expand to."""

import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from engine.data.files import read_rows
from engine.data.rows import Row, RowProblem

MIB = 1 << 20
CELL = """
import numpy, pyarrow, pyarrow.parquet
size = 400 << 20
offsets = pyarrow.py_buffer(numpy.array([0, size], numpy.int64))
cell = pyarrow.LargeStringArray.from_buffers(1, offsets, pyarrow.py_buffer(bytes(size)))
pyarrow.parquet.write_table(pyarrow.table({"text": cell}), PATH, compression="zstd", use_dictionary=False)
"""
NUMBERS = """
import numpy, pyarrow, pyarrow.parquet
ids = pyarrow.ListArray.from_arrays([0, 60_000_000], numpy.full(60_000_000, 7))
pyarrow.parquet.write_table(pyarrow.table({"input_ids": ids}), PATH, compression="zstd")
"""
TURNS = """
import numpy, pyarrow, pyarrow.parquet
turns = pyarrow.DictionaryArray.from_arrays(numpy.zeros(900_000, numpy.int32), ["B" * 1000]).cast("string")
listed = pyarrow.ListArray.from_arrays([0, 900_000], turns)
pyarrow.parquet.write_table(pyarrow.table({"messages": listed}), PATH, compression="zstd")
"""
LEAST_NUMBERS = """
import numpy, pyarrow, pyarrow.parquet
ids = pyarrow.ListArray.from_arrays([0, 5_000_000], numpy.full(5_000_000, 7, numpy.int32))
pyarrow.parquet.write_table(pyarrow.table({"input_ids": ids}), PATH, compression="zstd")
"""
READ = """
import resource, sys
from pathlib import Path
from engine.data.files import read_rows
from engine.errors import JobError
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
import pyarrow.parquet
before = peak()
try: found = [row.reason for row in read_rows(Path(sys.argv[1]))]
except JobError as error: found = [error.reason]
print(found[0], peak() - before)
"""


def run(code: str, *arguments: str) -> str:
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path)), "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        pytest.param(CELL, "DECOMPRESSION_BOMB", id="one cell of 400 MiB", marks=pytest.mark.long),
        pytest.param(NUMBERS, "DECOMPRESSION_BOMB", id="one list of 60 million numbers", marks=pytest.mark.long),
        pytest.param(TURNS, "ROW_TOO_LONG", id="one list that repeats a text"),
        pytest.param(LEAST_NUMBERS, "ROW_TOO_LONG", id="one list of 5 million numbers"),
    ],
)
def test_a_small_file_takes_little_memory(tmp_path: Path, written: str, reason: str) -> None:
    """One upload of a few kilobytes would otherwise take gigabytes, and end the work of others on the machine."""
    path = tmp_path / "rows.parquet"
    run(f"PATH = {str(path)!r}\n{written}")
    assert path.stat().st_size < 4 * MIB
    found, taken = run(READ, str(path)).split()
    assert found == reason
    assert int(taken) < 640 * MIB


def test_sizes_of_all_kinds_of_columns_are_counted(tmp_path: Path) -> None:
    """A kind of column that is not counted would be a way around the limit of a row."""
    long = "x" * (3 * MIB)
    columns = {
        "text": pyarrow.array([long, "a"]),
        "view": pyarrow.array([long, "a"], pyarrow.string_view()),
        "binary": pyarrow.array([long.encode(), b"a"]),
        "list": pyarrow.array([[long], ["a"]]),
        "fixed": pyarrow.array([[long, None], None], pyarrow.list_(pyarrow.string(), 2)),
        "map": pyarrow.array([[("key", long)], None], pyarrow.map_(pyarrow.string(), pyarrow.string())),
        "object": pyarrow.array([{"a": {"b": [long]}}, None]),
    }
    for name, column in columns.items():
        path = tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({name: column, "beside": pyarrow.array([long, None])}), path)
        first, second = read_rows(path)
        assert isinstance(first, RowProblem), name
        assert first.reason == "ROW_TOO_LONG"
        assert isinstance(second, Row)
        pyarrow.parquet.write_table(pyarrow.table({name: column}), path)
        assert all(isinstance(row, Row) for row in read_rows(path)), name
