"""Parquet files: lying footers, lengths and pages, and tables that decode to gigabytes."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.artifact import ACCEPTED, Family, Write
from tests.hostile.data_checks import GOOD, rows_file, written_file
from tests.hostile.model_files import Content

_MIB = 1 << 20
_UNREADABLE, _BOMB = "UNREADABLE_FILE", "DECOMPRESSION_BOMB"
_ROWS = [json.loads(line) for line in GOOD.splitlines()]


def _table(columns: Any, **options: Any) -> bytes:
    data = io.BytesIO()
    pq.write_table(pa.table(columns), data, **options)
    return data.getvalue()


_COLUMNS = {name: [row[name] for row in _ROWS] for name in ("question", "answer")}
_FILE = _table(_COLUMNS)
_PLAIN = _table(_COLUMNS, compression="none", use_dictionary=False)
_FOOTER = struct.unpack("<I", _FILE[-8:-4])[0]


def _with_footer(footer: bytes, length: int | None = None) -> bytes:
    return _FILE[: -8 - _FOOTER] + footer + struct.pack("<I", len(footer) if length is None else length) + b"PAR1"


def _footer() -> bytes:
    return _FILE[-8 - _FOOTER : -8]


def _shared(size: int, rows: int, **options: Any) -> Write:
    """Returns a function that writes a table whose rows share one text."""

    def write(path: Path) -> None:
        cells = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["a" * size]))
        pq.write_table(pa.table({"question": cells, "answer": cells}), path, **options)

    return write


def _one_cell(mib: int) -> Write:
    def write(path: Path) -> None:
        table = pa.table({"question": ["a" * (mib * _MIB)], "answer": ["b"]})
        pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)

    return write


def _pages(path: Path) -> None:
    cells = pa.chunked_array([pa.array(["a" * (40 * _MIB)])] * 30)
    pq.write_table(pa.table({"text": cells}), path, compression="zstd", use_dictionary=False, write_statistics=False)


def _lists(depth: int) -> pa.Array:
    type_ = pa.string()
    value: Any = "a"
    for _ in range(depth):
        type_, value = pa.list_(type_), [value]
    return pa.array([value], type_)


def _varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


# Thrift's compact protocol: a struct of FileMetaData with version 1 and a schema list of a claimed length.
_LIST_OF_2_31 = b"\x15\x02\x19\xfc" + _varint((1 << 31) - 1)
_LIST_OF_2_27 = b"\x15\x02\x19\xfc" + _varint(1 << 27)
_TEXT_OF_2_31 = b"\x15\x02\x19\x1c\x48" + _varint((1 << 31) - 1)
_TEXT_OF_99_MB = b"\x15\x02\x19\x1c\x48" + _varint(99 << 20)
_STRUCTS = b"\x1c" * 100_000
_TEXT = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"\xff\xfeA")]
)

_DAMAGED: dict[str, Content] = {
    "empty": b"",
    "magic": b"PAR1",
    "magic-twice": b"PAR1PAR1",
    "magic-and-length": b"PAR1" + struct.pack("<I", 0) + b"PAR1",
    "footer-length-2^32": _FILE[:-8] + b"\xff" * 4 + b"PAR1",
    "footer-length-beyond": _with_footer(_footer(), len(_FILE) * 2),
    "footer-length-zero": _with_footer(_footer(), 0),
    "footer-length-short": _with_footer(_footer(), _FOOTER - 5),
    "footer-cut": _with_footer(_footer()[:-20]),
    "footer-zeros": _with_footer(bytes(1000)),
    "footer-ones": _with_footer(b"\xff" * 1000),
    "footer-of-structs": _with_footer(_STRUCTS),
    "thrift-list-2^31": _with_footer(_LIST_OF_2_31 + b"\x15\x00" * 100),
    "thrift-list-2^27": _with_footer(_LIST_OF_2_27 + b"\x15\x00" * 100),
    "thrift-text-2^31": _with_footer(_TEXT_OF_2_31 + b"a" * 100),
    "thrift-text-99-mb": _with_footer(_TEXT_OF_99_MB + b"a" * 100),
    "encrypted-footer": _FILE[:-4] + b"PARE",
    "cut": _FILE[:-10],
    "cut-in-half": _FILE[: len(_FILE) // 2],
    "start-missing": _FILE[4:],
    "data-zeros": _FILE[:4] + bytes(len(_FILE) - 12 - _FOOTER) + _FILE[-8 - _FOOTER :],
    "data-missing": _FILE[:4] + _FILE[-8 - _FOOTER :],
    "data-ones": _FILE[:4] + b"\xff" * (len(_FILE) - 12 - _FOOTER) + _FILE[-8 - _FOOTER :],
    "page-header-ones": _PLAIN[:4] + b"\xff" * 30 + _PLAIN[34:],
    "jsonl": GOOD,
    "arrow": b"ARROW1\0\0" + bytes(1000),
    "name-latin1": _FILE.replace(b"question", b"qu\xebstion"),
}
_TABLES: dict[str, tuple[Content, str]] = {
    "columns-10,000": (lambda: _table({**_COLUMNS, **{f"c{n}": [None] * 40 for n in range(10_000)}}), ACCEPTED),
    "no-columns": (_table(pa.table({})), "EMPTY_DATASET"),
    "no-rows": (_table({"question": pa.array([], pa.string())}), "EMPTY_DATASET"),
    "nulls": (_table({"question": pa.nulls(40), "answer": pa.nulls(40)}), "UNKNOWN_FORMAT"),
    "lists-50-deep": (lambda: _table({"messages": _lists(50)}), "UNREADABLE_FILE"),
    "lists-200-deep": (lambda: _table({"messages": _lists(200)}), "UNREADABLE_FILE"),
    "not-utf8": (_table({"question": _TEXT, "answer": ["a", "b"]}), "NOT_UTF8"),
    "ids-of-64-bits": (_table({"input_ids": [[n, 1 << 62] for n in range(40)]}), "ID_OUT_OF_RANGE"),
    "ids-unsigned": (
        _table({"input_ids": pa.array([[n, (1 << 64) - 1] for n in range(40)], pa.list_(pa.uint64()))}),
        "ID_OUT_OF_RANGE",
    ),
    "timestamps-beyond-python": (
        _table({"question": pa.array([1 << 62], pa.timestamp("us")), "answer": ["a"]}),
        "UNREADABLE_FILE",
    ),
    "decimals": (_table({"question": pa.array([10**70], pa.decimal256(76)), "answer": ["a"]}), "WRONG_TYPE"),
    "bytes": (_table({"question": [b"\xff\x00"] * 40, "answer": ["a"] * 40}), "WRONG_TYPE"),
    "names-odd": (_table({"../../a": ["a"], "\x1b[2J": ["b"], "text": ["c"]}), "TOO_FEW_ROWS"),
    "rows-in-a-million-groups": (lambda: _table(_COLUMNS, row_group_size=1), ACCEPTED),
}
_TWO_NAMES = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])


def _twice(path: Path) -> None:
    pq.write_table(_TWO_NAMES, path)


PARQUET_FILES = Family(
    "Parquet files",
    (
        rows_file("ordinary.parquet", _FILE),
        *(rows_file(f"{name}.parquet", content, _UNREADABLE) for name, content in _DAMAGED.items()),
        *(rows_file(f"{name}.parquet", *case, seconds=4) for name, case in _TABLES.items()),
        written_file("columns-the-same.parquet", _twice, _UNREADABLE),
        written_file("shared-cell-1-mib.parquet", _shared(_MIB, 600), _BOMB, seconds=10),
        written_file("shared-cell-3-mib.parquet", _shared(3 * _MIB, 2_000), _BOMB, seconds=10),
        # Decoding stops at the limit of memory, so the length of the row isn't known.
        written_file("shared-cell-800-mib.parquet", _shared(800 * _MIB, 4), _BOMB, long=True),
        written_file("one-cell-20-mib.parquet", _one_cell(20), "ROW_TOO_LONG"),
        written_file("one-cell-800-mib.parquet", _one_cell(800), _BOMB, long=True),
        written_file("pages-of-40-mib.parquet", _pages, _BOMB, seconds=10),
    ),
)  # fmt: skip
