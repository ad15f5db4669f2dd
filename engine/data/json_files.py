"""Reads rows from JSON: one object per line, or an array of objects, one object in memory at a time."""

import codecs
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from engine.data.json_shapes import is_array_of_objects, printable, shape_of
from engine.data.rows import MAX_ROW_BYTES, Row, RowProblem, is_too_deep, json_type, too_long
from engine.data.streams import RowStream, unreadable

_CHUNK = 64 * 1024
_NO_SPACE = re.compile(r"[^ \t\r\n]")
_PYTHON = re.compile(r"'|None\b|True\b|False\b|array\(|nan\b|\(")
"""Text at the position of a JSON syntax error if the value was written with Python's str()."""
_NEAR_THE_END = 16
"""Distance from the end of the buffer, in characters, within which a syntax error may be caused by text that is not
read yet."""
_ENDS_READING = ("NOT_JSON", "NUL_CHARACTER", "NUMBER_TOO_LONG", "ROW_TOO_LONG", "NESTED_TOO_DEEPLY")


def read_json_lines(file: IO[bytes]) -> Iterator[Row | RowProblem]:
    """Yields one row per line; skips blank lines."""
    number = 0
    parser = _Parser()
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            yield too_long(number)
            while line and not line.endswith(b"\n"):
                line = file.readline(_CHUNK)
        elif line.strip():
            yield from _parsed(parser, number, line)


def refuse_other_json(file: RowStream, name: str) -> None:
    """Raises JobError("UNREADABLE_FILE") if a file that should hold one object per line starts as JSON of another
    shape: every line would be an error. Consumes nothing of the file."""
    shape = shape_of(file)
    if shape.kind == "array" and is_array_of_objects(file):
        raise unreadable(name, "is one JSON array, not one object per line; rename it to .json")
    if shape.kind == "keyed":
        raise unreadable(
            name, f"is one JSON object with its rows under {shape.key}, not one object per line; rename it to .json"
        )
    if shape.kind == "objects":
        raise unreadable(name, "has JSON objects that span several lines, not one object per line; rename it to .json")


def read_json(file: RowStream) -> Iterator[Row | RowProblem]:
    """Reads an array of objects, one object per line, consecutive objects, or one object whose only key holds an array
    of objects. An object with several keys is a row, whatever the order of its keys."""
    shape = shape_of(file)
    if shape.kind == "keyed":
        message = f"the rows are read from the array under {shape.key}"
        yield RowProblem(0, shape.key, "ROWS_UNDER_KEY", message, "warns")
        yield from _Values(file, under=shape.key, skip=shape.skip).rows()
    elif shape.kind == "lines":
        yield from read_json_lines(file)
    else:
        yield from _Values(file).rows()


def json_error(error: ValueError | RecursionError) -> str:
    """Returns the cause of a JSON syntax error, without its position."""
    if isinstance(error, RecursionError):
        return "its values are nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        # The only other ValueError: json refuses long numbers, because converting them takes quadratic time.
        return f"a number of more than {sys.get_int_max_str_digits():,} digits; write it as a string, in quotes"
    if _PYTHON.match(error.doc, error.pos):
        return "it is in Python's notation; write it with json.dumps"
    return error.msg.removesuffix(" at")


def _parsed(parser: "_Parser", number: int, line: bytes) -> Iterator[Row | RowProblem]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"not UTF-8: byte {error.start + 1} of the line; save the file as UTF-8"
        yield RowProblem(number, "", "NOT_UTF8", message)
        return
    try:
        values = parser.decode(text)
    except (ValueError, RecursionError) as error:
        where = ""
        if isinstance(error, json.JSONDecodeError):
            # The decoder reports a missing character at the end of a line as if it were on the next line.
            where = f" at column {min(error.pos, len(text.rstrip())) + 1}"
        yield _fault(number, error, where)
        return
    yield from parser.row(number, values, line.count(b"{") + line.count(b"["))


def _row(number: int, values: Any, brackets: int) -> Row | RowProblem:
    if not isinstance(values, dict):
        hint = '; write a conversation as {"messages": […]}' if isinstance(values, list) else ""
        return RowProblem(number, "", "NOT_AN_OBJECT", f"a JSON {json_type(values)}, not an object of columns{hint}")
    if brackets > 100 and is_too_deep(values):
        return _too_deep(number)
    return Row(number, values)


def _fault(number: int, error: ValueError | RecursionError, where: str) -> RowProblem:
    if isinstance(error, RecursionError):
        return _too_deep(number)
    if not isinstance(error, json.JSONDecodeError):
        return RowProblem(number, "", "NUMBER_TOO_LONG", f"has {json_error(error)}")
    if error.doc[error.pos : error.pos + 1] == "\0":
        return _nul(number, where)
    if error.msg == "Extra data" and error.doc[: error.pos].rstrip(" \t").endswith("\r"):
        return _not_json(number, "its lines end with carriage returns only; save the file with line feeds (Unix)")
    if error.doc[error.pos : error.pos + 1] == "\ufeff":
        return _not_json(number, f"a byte-order mark{where}, as in concatenated files; remove it")
    return _not_json(number, f"{json_error(error)}{where}")


def _nul(number: int, where: str) -> RowProblem:
    message = f"has a NUL character{where}; remove it, or save the file as UTF-8 if it has many of them"
    return RowProblem(number, "", "NUL_CHARACTER", message)


def _not_json(number: int, problem: str) -> RowProblem:
    return RowProblem(number, "", "NOT_JSON", f"not JSON: {problem}")


def _too_deep(number: int) -> RowProblem:
    return RowProblem(number, "", "NESTED_TOO_DEEPLY", "not JSON that can be read: its values are nested too deeply")


class _Parser:
    """Parses JSON and records keys that occur twice in an object."""

    def __init__(self) -> None:
        self._twice: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def decode(self, text: str) -> Any:
        """Raises ValueError and RecursionError."""
        self._twice.clear()
        return self._decoder.decode(text)

    def scan(self, text: str, at: int) -> tuple[Any, int]:
        """Returns the value that starts at a position, and its end. Raises as `decode` does."""
        self._twice.clear()
        return self._decoder.raw_decode(text, at)

    def row(self, number: int, values: Any, brackets: int) -> Iterator[Row | RowProblem]:
        """Yields the row of the value that was parsed last; `brackets` counts the opening brackets in its text."""
        found = _row(number, values, brackets)
        if self._twice and isinstance(found, Row):
            key = printable(self._twice[0])
            message = f"has the key {key} twice in one object; the last one is used; remove one of them"
            yield RowProblem(number, key, "DUPLICATE_KEY", message, "warns")
        yield found

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            keys = Counter(key for key, _ in pairs)
            self._twice.append(keys.most_common(1)[0][0])
        return values


class _Values:
    """Reads consecutive JSON values, or the elements of one array.

    Reading ends at a syntax error, because the start of the next element is unknown.
    """

    def __init__(self, file: IO[bytes], under: str = "", skip: int = 0) -> None:
        """`under` is the key, in an object without other keys, that holds the array; it starts after `skip` bytes."""
        self._file = file
        self._under = under
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._parser = _Parser()
        self._text = ""
        self._at = 0
        self._line = 1 + file.read(skip).count(b"\n")
        self._ended = False

    def rows(self) -> Iterator[Row | RowProblem]:
        number = 0
        try:
            in_array = self._peek() == "["
            if in_array:
                self._at += 1
            while (character := self._peek()) and not (in_array and character == "]"):
                number += 1
                if in_array and number > 1:
                    if character != ",":
                        yield self._no_comma(number, character)
                        return
                    self._at += 1
                    self._peek()
                for found in self._value(number):
                    yield found
                    if isinstance(found, RowProblem) and found.reason in _ENDS_READING:
                        return
            if in_array and not character:
                yield _not_json(number + 1, "the array does not end; the file is incomplete")
            elif in_array:
                self._at += 1
                yield from self._behind(number + 1)
        except UnicodeDecodeError:
            yield RowProblem(number + 1, "", "NOT_UTF8", "not UTF-8, in this row or the next; save the file as UTF-8")

    def _no_comma(self, number: int, character: str) -> RowProblem:
        where = f" on line {self._line}"
        return _nul(number, where) if character == "\0" else _not_json(number, f"a comma is missing before it,{where}")

    def _behind(self, number: int) -> Iterator[RowProblem]:
        """Yields the problem of text after the end of the array, if there is any."""
        if self._under:
            if self._peek() != "}":
                said = f"the object does not end after the array under {self._under}, on line {self._line}"
                yield _not_json(number, f"{said}; save that array alone")
                return
            self._at += 1
        if character := self._peek():
            where = f" on line {self._line}"
            said = f"there is text after the end of the {'object' if self._under else 'array'},{where}"
            yield _nul(number, where) if character == "\0" else _not_json(number, said)

    def _value(self, number: int) -> Iterator[Row | RowProblem]:
        wanted = _CHUNK
        while True:
            try:
                value, end = self._parser.scan(self._text, self._at)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _NEAR_THE_END
                if self._ended or not unfinished:
                    line = self._line + self._text.count("\n", self._at, error.pos)
                    yield _fault(number, error, f" on line {line}")
                    return
            except (ValueError, RecursionError) as error:
                yield _fault(number, error, "")
                return
            else:
                if end < len(self._text) or self._ended:
                    brackets = self._text.count("{", self._at, end) + self._text.count("[", self._at, end)
                    self._line += self._text.count("\n", self._at, end)
                    self._at = end
                    yield from self._parser.row(number, value, brackets)
                    return
            held = len(self._text) - self._at
            if held > MAX_ROW_BYTES:
                yield too_long(number)
                return
            # Doubled each time, because the value is parsed again from its start.
            self._read(min(wanted, MAX_ROW_BYTES + _CHUNK - held))
            wanted *= 2

    def _peek(self) -> str:
        """Returns the next character that is not a space; empty at the end."""
        while True:
            found = _NO_SPACE.search(self._text, self._at)
            at = found.start() if found else len(self._text)
            self._line += self._text.count("\n", self._at, at)
            self._at = at
            if found:
                return found[0]
            if self._ended:
                return ""
            self._read(_CHUNK)

    def _read(self, size: int) -> None:
        data = self._file.read(size)
        self._ended = not data
        self._text = self._text[self._at :] + self._decode.decode(data, final=self._ended)
        self._at = 0
