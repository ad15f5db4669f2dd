"""Files as people really upload them, broken in every way we know of, with what has to be said of each."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

QA = {"question": "Why?", "answer": "Because."}
LINE = json.dumps(QA).encode() + b"\n"
TABLE = b"question,answer\nWhy?,Because.\n"
MIB = 1 << 20

Content = bytes | Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """`said`: a reason of the file as a whole, or the reasons of its rows with their numbers."""

    name: str
    content: Content
    rows: int
    said: str | tuple[tuple[int, str], ...] = ()

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        if callable(self.content):
            self.content(path)
        else:
            path.write_bytes(self.content)
        return path


def zstd_bytes(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def table(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def gzip_bomb(path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(130):
            file.write(b" " * MIB)


def zstd_bomb(path: Path) -> None:
    path.write_bytes(zstd_bytes(b" " * (130 * MIB)))


def long_line(path: Path) -> None:
    with path.open("wb") as file:
        file.write(LINE + b'{"question": "Why?", "answer": "')
        for _ in range(100):
            file.write(b"a" * MIB)
        file.write(b'"}\n' + LINE)


def long_csv(path: Path) -> None:
    with path.open("wb") as file:
        file.write(TABLE + b"Why?,")
        for _ in range(20):
            file.write(b"a" * MIB)
        file.write(b"\nWhy?,So.\n")


def long_element(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b'[{"answer": "')
        for _ in range(20):
            file.write(b"a" * MIB)
        file.write(b'"}]')


def quoted(*rows: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([["question", "answer"], *rows])
    return text.getvalue().encode()


def wide_table(path: Path) -> None:
    names = ",".join(f"c{n}" for n in range(50_000)).encode()
    path.write_bytes(b"question,answer," + names + b"\nWhy?,So." + b"," * 50_000 + b"\n")


def cell_bomb(path: Path) -> None:
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * 600, pa.int32()), pa.array(["a" * MIB]))
    pq.write_table(pa.table({"question": cells, "answer": cells}), path)


def turn_bomb(path: Path) -> None:
    """One answer in every conversation, which a batch of them must not hold as often."""
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), pa.array(["a" * (3 * MIB)]))
    turns = pa.StructArray.from_arrays([cells], ["content"])
    pq.write_table(pa.table({"messages": pa.ListArray.from_arrays(range(401), turns)}), path, compression="zstd")


def page_bomb(path: Path) -> None:
    cells = pa.chunked_array([pa.array(["a" * (40 * MIB)])] * 30)
    pq.write_table(pa.table({"text": cells}), path, compression="zstd", use_dictionary=False, write_statistics=False)


BOM = b"\xef\xbb\xbf"
PARQUET = table(question=["Why?"] * 3, answer=["So.", None, "So."])
BAD_TEXT = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"\xff\xfeA")]
)

CASES = [
    # Lines of JSON.
    Case("good.jsonl", LINE * 3, 3),
    Case("upper.JSONL", LINE, 1),
    Case("two.dots.ndjson", LINE, 1),
    Case("bom.jsonl", BOM + LINE, 1),
    Case("windows.jsonl", LINE.replace(b"\n", b"\r\n") * 2, 2),
    Case("no-end.jsonl", LINE + LINE.strip(), 2),
    Case("blank-lines.jsonl", b"\n \n" + LINE + b"\n", 1),
    Case("empty.jsonl", b"", 0),
    Case("two-boms.jsonl", BOM + BOM + LINE, 0, ((1, "NOT_JSON"),)),
    Case("utf16.jsonl", LINE.decode().encode("utf-16"), 0, "UNREADABLE_FILE"),
    Case("utf16-no-bom.jsonl", LINE.decode().encode("utf-16-le"), 0, ((1, "NUL_CHARACTER"), (2, "NUL_CHARACTER"))),
    Case("utf32.jsonl", LINE.decode().encode("utf-32"), 0, "UNREADABLE_FILE"),
    Case("latin1.jsonl", LINE + b'{"question": "caf\xe9", "answer": "x"}\n' + LINE, 2, ((2, "NOT_UTF8"),)),
    Case("cut-character.jsonl", LINE + b'{"question": "\xe2\x82', 1, ((2, "NOT_UTF8"),)),
    Case("overlong.jsonl", b'{"question": "\xc0\xaf"}\n', 0, ((1, "NOT_UTF8"),)),
    Case("nul.jsonl", LINE + b'{"question": "a\0b"}\n' + LINE, 2, ((2, "NUL_CHARACTER"),)),
    Case("nuls-only.jsonl", b"\0" * 1000, 0, ((1, "NUL_CHARACTER"),)),
    Case("nul-at-end.jsonl", LINE + b"\0", 1, ((2, "NUL_CHARACTER"),)),
    Case("control.jsonl", b'{"question": "a\x01b"}\n', 0, ((1, "NOT_JSON"),)),
    Case("100-mb-row.jsonl", long_line, 2, ((2, "ROW_TOO_LONG"),)),
    Case("nested.jsonl", b'{"a": ' * 100_000 + b"\n" + LINE, 1, ((1, "NESTED_TOO_DEEPLY"),)),
    Case("nested-lists.jsonl", b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}\n", 0, ((1, "NESTED_TOO_DEEPLY"),)),
    Case("half.jsonl", LINE + b'{"question": "Why', 1, ((2, "NOT_JSON"),)),
    Case("single-quotes.jsonl", b"{'question': 'Why?'}\n", 0, ((1, "NOT_JSON"),)),
    Case("trailing-comma.jsonl", b'{"question": "Why?",}\n', 0, ((1, "NOT_JSON"),)),
    Case("two-a-line.jsonl", LINE.strip() + LINE, 0, ((1, "NOT_JSON"),)),
    Case("array.jsonl", b"[" + LINE.strip() + b"]\n", 0, "UNREADABLE_FILE"),
    Case("array-over-lines.jsonl", b"[" + LINE.strip() + b",\n" + LINE + b"]\n", 0, "UNREADABLE_FILE"),
    Case("pretty.jsonl", json.dumps([QA, QA], indent=2).encode(), 0, "UNREADABLE_FILE"),
    Case("pretty-object.jsonl", json.dumps({"messages": [QA]}, indent=2).encode(), 0, "UNREADABLE_FILE"),
    Case("keyed.jsonl", json.dumps({"data": [QA, QA]}).encode(), 0, "UNREADABLE_FILE"),
    Case("keyed-pretty.jsonl", json.dumps({"data": [QA, QA]}, indent=2).encode(), 0, "UNREADABLE_FILE"),
    Case("arrays.jsonl", (b"[" + LINE.strip() + b"]\n") * 2, 0, ((1, "NOT_AN_OBJECT"), (2, "NOT_AN_OBJECT"))),
    Case("scalars.jsonl", b'1\n"a"\nnull\ntrue\n', 0, tuple((n, "NOT_AN_OBJECT") for n in range(1, 5))),
    Case("huge-number.jsonl", b'{"a": ' + b"9" * 10_000 + b"}\n", 0, ((1, "NUMBER_TOO_LONG"),)),
    Case("html.jsonl", b"<html>\n<body>404</body>\n", 0, ((1, "NOT_JSON"), (2, "NOT_JSON"))),
    # The content does not match the file's extension.
    Case("gzip.jsonl", gzip.compress(LINE), 0, "UNREADABLE_FILE"),
    Case("zstd.csv", zstd_bytes(TABLE), 0, "UNREADABLE_FILE"),
    Case("parquet.jsonl", PARQUET, 0, "UNREADABLE_FILE"),
    Case("sheet.csv", b"PK\x03\x04" + b"\0" * 100, 0, "UNREADABLE_FILE"),
    Case("paper.txt", b"%PDF-1.7\n" + b"\xff" * 100, 0, "UNREADABLE_FILE"),
    Case("rows.xlsx", b"PK\x03\x04", 0, "UNSUPPORTED_FILE"),
    Case("rows.pickle", b"\x80\x04K\x01.", 0, "UNSUPPORTED_FILE"),
    Case("rows", LINE, 0, "UNSUPPORTED_FILE"),
    Case("rows.parquet.gz", b"", 0, "UNSUPPORTED_FILE"),
    # JSON.
    Case("spaces.json", b"[" + b" " * (8 * MIB) + LINE + b"]", 1),
    Case("array.json", b"[" + LINE + b"," + LINE + b"]", 2),
    Case("pretty.json", json.dumps([QA, QA], indent=2).encode(), 2),
    Case("lines.json", LINE * 2, 2),
    Case("one-object.json", json.dumps(QA, indent=2).encode(), 1),
    Case("bom.json", BOM + b"[" + LINE + b"]", 1),
    Case("empty-array.json", b"[]", 0),
    Case("cut.json", b"[" + LINE + b"," + LINE[:20], 1, ((2, "NOT_JSON"),)),
    Case("not-ended.json", b"[" + LINE, 1, ((2, "NOT_JSON"),)),
    Case("no-comma.json", b"[" + LINE + LINE + b"]", 1, ((2, "NOT_JSON"),)),
    Case("comma-at-end.json", b"[" + LINE + b",]", 1, ((2, "NOT_JSON"),)),
    Case("after-the-end.json", b"[" + LINE + b"] x", 1, ((2, "NOT_JSON"),)),
    Case("numbers.json", b"[1, 2, " + LINE + b"]", 1, ((1, "NOT_AN_OBJECT"), (2, "NOT_AN_OBJECT"))),
    Case("latin1.json", b'[{"question": "caf\xe9"}]', 0, ((1, "NOT_UTF8"),)),
    Case("nul-at-end.json", b"[" + LINE + b"]\0", 1, ((2, "NUL_CHARACTER"),)),
    Case("nul-between.json", b"[" + LINE + b"\0" + LINE + b"]", 1, ((2, "NUL_CHARACTER"),)),
    Case("huge-number.json", b'[{"a": ' + b"9" * 6_000 + b"}]", 0, ((1, "NUMBER_TOO_LONG"),)),
    Case("nested.json", b"[" * 100_000, 0, ((1, "NESTED_TOO_DEEPLY"),)),
    Case("long.json", long_element, 0, ((1, "ROW_TOO_LONG"),)),
    # Tables.
    Case("good.csv", TABLE, 1),
    Case("semicolons.csv", TABLE.replace(b",", b";"), 1),
    Case("tabs.tsv", TABLE.replace(b",", b"\t"), 1),
    Case("bom.csv", BOM + TABLE, 1),
    Case("old-mac.csv", TABLE.replace(b"\n", b"\r"), 1),
    Case("lines-in-cells.csv", quoted(["a\nb", 'say "x"'], ["c", "d"]), 2),
    Case("wide.csv", wide_table, 1),
    Case("injection.csv", quoted(["=cmd|' /C calc'!A0", "@SUM(1+1)*cmd"], ["+1", "-1"]), 2),
    Case("header-only.csv", b"question,answer\n", 0),
    Case("empty.csv", b"", 0),
    Case("twice.csv", b"a,b,a\n1,2,3\n", 0, "BAD_HEADER"),
    Case("latin1-header.csv", b"question,r\xe9ponse\n1,2\n", 0, "BAD_HEADER"),
    Case("ragged.csv", TABLE + b"a\n1,2,3\nb,c\n", 2, ((3, "WRONG_NUMBER_OF_CELLS"), (4, "WRONG_NUMBER_OF_CELLS"))),
    Case("latin1.csv", TABLE + b"caf\xe9,x\nb,c\n", 2, ((3, "NOT_UTF8"),)),
    Case("open-quote.csv", TABLE + b'"a,b\nc,d\n', 1, ((3, "QUOTE_NOT_CLOSED"),)),
    Case("nul-at-end.csv", TABLE + b"\0", 1, ((3, "NUL_CHARACTER"),)),
    Case("bad-quote.csv", TABLE + b'"a"x,b\nc,d\n', 2, ((3, "BAD_QUOTING"),)),
    Case("long-cell.csv", long_csv, 2, ((3, "ROW_TOO_LONG"),)),
    Case("utf16.csv", TABLE.decode().encode("utf-16"), 0, "UNREADABLE_FILE"),
    # Packed.
    Case("good.jsonl.gz", gzip.compress(LINE) * 2, 2),
    Case("good.csv.zst", zstd_bytes(TABLE), 1),
    Case("good.json.gz", gzip.compress(b"[" + LINE + b"]"), 1),
    Case("good.txt.zst", zstd_bytes(b"To be.\n"), 1),
    Case("cut.jsonl.gz", gzip.compress(LINE * 1000)[:-20], 0, "UNREADABLE_FILE"),
    Case("cut.jsonl.zst", zstd_bytes(LINE * 1000)[:-20], 0, "UNREADABLE_FILE"),
    Case("damaged.jsonl.gz", gzip.compress(LINE * 100)[:30] + b"\xff" * 40, 0, "UNREADABLE_FILE"),
    Case("not-packed.jsonl.gz", LINE, 0, "UNREADABLE_FILE"),
    Case("not-packed.jsonl.zst", LINE, 0, "UNREADABLE_FILE"),
    Case("twice.jsonl.gz", gzip.compress(gzip.compress(LINE)), 0, "UNREADABLE_FILE"),
    Case("bomb.jsonl.gz", gzip_bomb, 0, "DECOMPRESSION_BOMB"),
    Case("bomb.txt.zst", zstd_bomb, 0, "DECOMPRESSION_BOMB"),
    # Parquet.
    Case("good.parquet", PARQUET, 3),
    Case("no-rows.parquet", table(question=pa.array([], pa.string())), 0),
    Case("empty.parquet", b"", 0, "UNREADABLE_FILE"),
    Case("cut.parquet", PARQUET[:-10], 0, "UNREADABLE_FILE"),
    Case("damaged.parquet", PARQUET[:20] + b"\xff" * 40 + PARQUET[60:], 0, "UNREADABLE_FILE"),
    Case("latin1-column.parquet", PARQUET.replace(b"question", b"qu\xebstion"), 0, "UNREADABLE_FILE"),
    Case("jsonl.parquet", LINE, 0, "UNREADABLE_FILE"),
    Case("bomb.parquet", cell_bomb, 0, "DECOMPRESSION_BOMB"),
    Case("page-bomb.parquet", page_bomb, 0, "DECOMPRESSION_BOMB"),
    Case("dictionary.parquet", table(**{name: pa.array(["a", "a"]).dictionary_encode() for name in QA}), 2),
    Case("bytes.parquet", table(question=[b"Why?"], answer=["So."]), 1),
    Case("bad-text.parquet", table(question=BAD_TEXT), 1, ((1, "NOT_UTF8"),)),
    # Text.
    Case("good.txt", b"To be, or not to be:\nthat is the question.\n", 1),
    Case("latin1.txt", b"To be\ncaf\xe9\n", 0, ((2, "NOT_UTF8"),)),
    Case("blank.txt", b"\n \n\n", 0),
]  # fmt: skip
