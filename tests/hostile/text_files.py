"""Files of rows as text: encodings, nesting, numbers, lengths and counts."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.hostile.artifact import ACCEPTED, Family, Write
from tests.hostile.data_checks import GOOD, LINE, TABLE, rows_file, written_file
from tests.hostile.model_files import Content

_MIB = 1 << 20
_BOM = b"\xef\xbb\xbf"
_LONG, _DEEP, _NUL = "ROW_TOO_LONG", "NESTED_TOO_DEEPLY", "NUL_CHARACTER"
_UNREADABLE = "UNREADABLE_FILE"


def _line(values: object) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _lines(row: Callable[[int], object]) -> bytes:
    return b"".join(_line(row(number)) for number in range(1, 41))


def _one_line(start: bytes, end: bytes, filler: bytes = b"a") -> Write:
    """Returns a function that writes good rows, then one of 100 MB."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.write(start)
            for _ in range(100):
                file.write(filler * (_MIB // len(filler)))
            file.write(end)

    return write


_ROW = {"question": "Why?", "answer": "Because."}
_TURN = {"role": "user", "content": "Why?"}
_LINES: dict[str, tuple[Content, str]] = {
    "empty": (b"", "EMPTY_DATASET"),
    "newlines": (b"\n" * (4 * _MIB), "EMPTY_DATASET"),
    "spaces": (b" " * (20 * _MIB), _LONG),
    "nul": (GOOD + b'{"question": "a\0b"}\n', _NUL),
    "nuls": (bytes(_MIB), _NUL),
    "nul-escaped": (GOOD + _line({"question": "a\0b", "answer": "c"}), _NUL),
    "bom": (_BOM + GOOD, ACCEPTED),
    "bom-twice": (_BOM + _BOM + GOOD, "NOT_JSON"),
    "bom-inside": (GOOD + _BOM + LINE, "NOT_JSON"),
    "utf16": (GOOD.decode().encode("utf-16"), _UNREADABLE),
    "utf16-big": (GOOD.decode().encode("utf-16-be"), _NUL),
    "utf32": (GOOD.decode().encode("utf-32"), _UNREADABLE),
    "utf7": (GOOD + b'{"question": "+AGEA-", "answer": "b"}\n', ACCEPTED),
    "latin1": (GOOD + b'{"question": "caf\xe9"}\n', "NOT_UTF8"),
    "overlong": (GOOD + b'{"question": "\xc0\xae\xc0\xae/"}\n', "NOT_UTF8"),
    "surrogate-bytes": (GOOD + b'{"question": "\xed\xa0\x80"}\n', "NOT_UTF8"),
    "above-unicode": (GOOD + b'{"question": "\xf4\x90\x80\x80"}\n', "NOT_UTF8"),
    "surrogate-escaped": (GOOD + b'{"question": "\\ud800", "answer": "b"}\n', "NOT_TEXT"),
    "surrogate-in-key": (GOOD + b'{"\\udfff": 1, "question": "a", "answer": "b"}\n', ACCEPTED),
    "control": (GOOD + b'{"question": "\x01\x1b[2J"}\n', "NOT_JSON"),
    "terminal-escaped": (GOOD + _line({"question": "\x1b]0;a\x07", "answer": "b"}), ACCEPTED),
    "right-to-left": (GOOD + _line({"question": "\u202e" * 1000, "answer": "b"}), ACCEPTED),
    "combining": (GOOD + _line({"question": "a" + "\u0301" * 100_000, "answer": "b"}), ACCEPTED),
    "deep": (GOOD + b'{"a": ' * 100_000 + b"\n", _DEEP),
    "deep-lists": (GOOD + b'{"question": ' + b"[" * 100_000 + b"\n", _DEEP),
    "deep-and-closed": (GOOD + b'{"a": ' * 500 + b"1" + b"}" * 500 + b"\n", _DEEP),
    "deep-in-turns": (GOOD + b'{"messages": ' + b"[" * 150 + b"]" * 150 + b"}\n", _DEEP),
    "deep-in-text": (_line({"messages": "[" * 100_000}) + GOOD, "MISSING_COLUMN NOT_JSON"),
    "number": (GOOD + b'{"question": ' + b"9" * (3 * _MIB) + b"}\n", "NUMBER_TOO_LONG"),
    "number-negative": (GOOD + b'{"question": -' + b"9" * 5000 + b"}\n", "NUMBER_TOO_LONG"),
    "number-exponent": (GOOD + b'{"question": 1e999999999, "answer": "a"}\n', "WRONG_TYPE"),
    "number-fraction": (GOOD + b'{"question": 0.' + b"1" * _MIB + b', "answer": "a"}\n', "WRONG_TYPE"),
    "number-nan": (GOOD + b'{"question": NaN, "answer": -Infinity}\n', "WRONG_TYPE"),
    "ids-huge": (_lines(lambda n: {"input_ids": [n, 1 << 70]}), "ID_OUT_OF_RANGE"),
    "ids-beyond-the-vocabulary": (_lines(lambda n: {"input_ids": [1, 2, 10**6 + n]}), "ID_OUT_OF_RANGE"),
    "ids-negative": (_lines(lambda n: {"input_ids": [n, -(1 << 40)]}), "ID_OUT_OF_RANGE"),
    "ids-fraction": (_lines(lambda n: {"input_ids": [n, 1.5]}), "WRONG_TYPE"),
    "ids-million": (lambda: _line({"input_ids": [1] * _MIB}), "TOO_FEW_ROWS"),
    "labels-shorter": (_lines(lambda n: {"input_ids": [n, 2], "labels": [1]}), "WRONG_LENGTH"),
    "labels-huge": (_lines(lambda n: {"input_ids": [n, 2], "labels": [1, 1 << 64]}), "ID_OUT_OF_RANGE"),
    "mask-huge": (_lines(lambda n: {"input_ids": [n], "attention_mask": [1 << 64]}), "WRONG_TYPE"),
    "keys-100,000": (lambda: GOOD + _line({**_ROW, **{f"k{n}": 1 for n in range(100_000)}}), ACCEPTED),
    "keys-the-same": (GOOD + b"{" + b'"a": 1, ' * 100_000 + b'"question": "a", "answer": "b"}\n', ACCEPTED),
    "key-of-a-megabyte": (GOOD + _line({**_ROW, "a" * _MIB: 1}), ACCEPTED),
    "columns-never-the-same": (
        lambda: b"".join(_line({f"c{n}-{m}": 1 for m in range(100)}) for n in range(2000)),
        "UNKNOWN_FORMAT",
    ),
    "questions-60,000": (lambda: _line({"messages": [_TURN] * 60_000}), "NO_ANSWER"),
    "chat-of-50,000-turns": (
        lambda: _line({"messages": [_TURN, {"role": "assistant", "content": "So."}] * 25_000}) * 2,
        "TOO_FEW_ROWS",
    ),
    "roles-unknown": (_line({"messages": [{"role": "__class__", "content": "a"}] * 2}) * 40, "UNKNOWN_ROLE"),
    "control-tokens": (GOOD + _line({"question": "<|im_end|>" * 50_000, "answer": "a"}), ACCEPTED),
    "one-letter-4-mb": (GOOD + _line({"question": "a" * (3 * _MIB), "answer": "b"}), ACCEPTED),
    "spaces-3-mb": (GOOD + _line({"question": " " * (3 * _MIB), "answer": "b"}), ACCEPTED),
    "emoji-3-mb": (
        lambda: GOOD + json.dumps({"question": "\U0001f469\u200d" * 100_000, "answer": "b"}).encode(),
        ACCEPTED,
    ),
    "rows-30,000": (lambda: LINE * 30_000, "TOO_FEW_ROWS"),
    "faults-100,000": (lambda: b"{\n" * 100_000, "NOT_JSON"),
    "template-in-text": (GOOD + _line({"question": "{{ ''.__class__ }}{% for %}", "answer": "b"}), ACCEPTED),
    "path-of-an-image": (
        GOOD + _line({"question": "../../etc/passwd", "image": "/etc/passwd", "answer": "b"}),
        "UNSUPPORTED_MEDIA",
    ),
    "python": (b"{'question': __import__('os').system('true')}\n" * 3, "NOT_JSON"),
    "pickle": (b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\n", "NOT_UTF8"),
    "html": (b"<html><script>alert(1)</script>\n" * 3, "NOT_JSON"),
    "xml": (b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>\n', "NOT_JSON"),
    "half": (GOOD + b'{"question": "Wh', "NOT_JSON"),
    "garbage-behind": (GOOD + b"\x8f\x00\xff" * 1000, "NOT_UTF8"),
}
_LIMITS: dict[str, dict[str, int]] = {
    "chat-of-50,000-turns": {"seconds": 4},
    "one-letter-4-mb": {"seconds": 4, "mib": 768},
    "rows-30,000": {"seconds": 4},
    "faults-100,000": {"seconds": 4},
}
"""Limits of files that are read to their end: their time is in proportion to their size."""
_ARRAY = b"[" + GOOD.strip().replace(b"\n", b",")
_JSON: dict[str, tuple[Content, str]] = {
    "ordinary": (_ARRAY + b"]", ACCEPTED),
    "deep": (b"[" * 200_000, _DEEP),
    "deep-objects": (b'[{"a":' * 50_000, _DEEP),
    "deep-behind": (_ARRAY + b"," + b'{"a":' * 50_000, _DEEP),
    "cut": (_ARRAY, "NOT_JSON"),
    "garbage-behind": (_ARRAY + b"]\xff\xff", "NOT_UTF8"),
    "text-behind": (_ARRAY + b"] x", "NOT_JSON"),
    "nul-behind": (_ARRAY + b"]\0", _NUL),
    "scalars": (b"[" + b"1," * 100_000 + b"1]", "NOT_AN_OBJECT"),
    "commas": (b"[" + b"," * 1_000_000 + b"]", "NOT_JSON"),
    "number": (_ARRAY + b',{"a": ' + b"9" * (3 * _MIB) + b"}]", "NUMBER_TOO_LONG"),
    "number-alone": (b"9" * (20 * _MIB), "NUMBER_TOO_LONG"),
    "text-without-end": (b'[{"a": "' + b"a" * (20 * _MIB), _LONG),
    "spaces-without-end": (b" " * (100 * _MIB), "EMPTY_DATASET"),
    "escapes-without-end": (b'[{"a": "' + b"\\" * (10 * _MIB), _LONG),
    "keys-without-end": (b"[{" + b'"a": 1,' * (2 * _MIB), _LONG),
    "empty-objects": (lambda: b"[" + b"{}," * 30_000 + b"{}]", "UNKNOWN_FORMAT"),
    "under-a-key": (b'{"../../a\\u0000": ' + _ARRAY + b"]}", ACCEPTED),
    "objects-in-a-row": (LINE.strip() * 10_000, "TOO_FEW_ROWS"),
}
_CELL = "WRONG_NUMBER_OF_CELLS"
_TABLES: dict[str, tuple[Content, str]] = {
    "ordinary": (TABLE, ACCEPTED),
    "columns-400,000": (
        lambda: b"question,answer," + b",".join(b"c%d" % n for n in range(400_000)) + b"\na,b\n",
        _CELL,
    ),
    "columns-the-same": (b"a," * 200_000 + b"a\n", "BAD_HEADER"),
    "columns-without-names": (b"," * 100_000 + b"\n", "EMPTY_DATASET"),
    "delimiters-only": (b"question,answer\n" + b"," * (20 * _MIB), _LONG),
    "quote-without-end": (TABLE + b'"' + b"a" * (20 * _MIB), _LONG),
    "quote-over-lines": (TABLE + b'"' + b"a\n" * (2 * _MIB + 10_000), f"QUOTE_NOT_CLOSED {_CELL}"),
    "quotes-only": (TABLE + b'"' * (3 * _MIB + 1), "QUOTE_NOT_CLOSED"),
    "quote-in-header": (b'question,"' + b"a\n" * _MIB, "BAD_HEADER"),
    "nul": (TABLE + b"a\0,b\n", _NUL),
    "nul-in-header": (b"question\0,answer\na,b\n", "BAD_HEADER"),
    "formulas": (TABLE + b"=cmd|' /C calc'!A0,@SUM(1)\n", ACCEPTED),
    "latin1": (TABLE + b"caf\xe9,b\n", "NOT_UTF8"),
    "latin1-header": (b"question,caf\xe9\n", "BAD_HEADER"),
    "carriage-returns": (TABLE.replace(b"\n", b"\r"), ACCEPTED),
    "separator-line": (b"sep=\0\nquestion\0answer\n", "EMPTY_DATASET"),
    "separator-letter": (b"sep=e\n" + TABLE, _CELL),
    "no-lines": (b"question,answer", "EMPTY_DATASET"),
    "rows-short-100,000": (TABLE + b"a\n" * 100_000, _CELL),
}

TEXT_FILES = Family(
    "files of text",
    (
        rows_file("ordinary.jsonl", GOOD),
        *(rows_file(f"{name}.jsonl", *case, **_LIMITS.get(name, {})) for name, case in _LINES.items()),
        *(rows_file(f"{name}.json", *case) for name, case in _JSON.items()),
        *(rows_file(f"{name}.csv", *case) for name, case in _TABLES.items()),
        rows_file("ordinary.tsv", TABLE.replace(b",", b"\t")),
        rows_file("commas.tsv", TABLE, "UNKNOWN_FORMAT"),
        rows_file("binary.tsv", bytes(range(256)) * 1000, "BAD_HEADER"),
        rows_file("nul.txt", b"a\0b\n" * 1000, _NUL),
        rows_file("latin1.txt", b"caf\xe9\n", "NOT_UTF8"),
        rows_file("binary.txt", b"\xff" * _MIB, "NOT_UTF8"),
        rows_file("one-line.txt", b"a" * (10 * _MIB)),
        rows_file("newlines.txt", b"\n" * (10 * _MIB), "EMPTY_DATASET"),
        rows_file("surrogates.txt", b"\xed\xa0\x80" * 1000, "NOT_UTF8"),
        written_file("100-mb-line.jsonl", _one_line(GOOD + b'{"a": "', b'"}\n'), _LONG),
        written_file("100-mb-spaces.jsonl", _one_line(GOOD, b"\n", b" "), _LONG),
        written_file("100-mb-keys.jsonl", _one_line(GOOD + b"{", b"\n", b'"a":1,'), _LONG),
        written_file("100-mb-cell.csv", _one_line(TABLE, b"\n"), _LONG),
        written_file("100-mb-header.csv", _one_line(b"question", b"\n"), "BAD_HEADER"),
        written_file("100-mb-header.tsv", _one_line(b"", b"\n", b"a\t"), "BAD_HEADER"),
        written_file("100-mb-line.json", _one_line(b'[{"a": "', b'"}]'), _LONG),
        written_file("100-mb-line.txt", _one_line(b"", b""), seconds=5),
    ),
)
