"""Rows out of JSON: one object a line, or an array of objects, of which only one is held at a time."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from engine.data.rows import MAX_ROW_BYTES, Row, RowProblem, is_too_deep, json_type, too_long

_CHUNK = 64 * 1024
_NO_SPACE = re.compile(r"[^ \t\r\n]")
_NEAR_THE_END = 16
"""Characters from the end of what was read within which a fault may only be that the rest is missing."""


def read_json_lines(file: IO[bytes]) -> Iterator[Row | RowProblem]:
    """One object a line; blank lines are skipped."""
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            yield too_long(number)
            while line and not line.endswith(b"\n"):
                line = file.readline(_CHUNK)
        elif line.strip():
            yield _parsed(number, line)


def read_json(file: IO[bytes]) -> Iterator[Row | RowProblem]:
    """An array of objects, one object a line, or objects one after the other."""
    head: bytes = file.peek(_CHUNK)  # type: ignore[attr-defined] # of a BufferedReader
    first = head.lstrip()
    if first.startswith(b"{") and _is_json(first.splitlines()[0]):
        yield from read_json_lines(file)
    else:
        yield from _Values(file).rows()


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(number: int, line: bytes) -> Row | RowProblem:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"not UTF-8: byte {error.start + 1} of the line; save the file as UTF-8"
        return RowProblem(number, "", "NOT_UTF8", message)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        return _not_json(number, f"{error.msg.removesuffix(' at')} at column {error.colno}")
    except RecursionError:
        return _too_deep(number)
    except ValueError as error:
        return _not_json(number, f"{error}")
    return _row(number, values, line.count(b"{") + line.count(b"["))


def _row(number: int, values: Any, brackets: int) -> Row | RowProblem:
    if not isinstance(values, dict):
        hint = "; a file that is one array ends in .json" if isinstance(values, list) else ""
        return RowProblem(number, "", "NOT_AN_OBJECT", f"a JSON {json_type(values)}, not an object of columns{hint}")
    if brackets > 100 and is_too_deep(values):
        return _too_deep(number)
    return Row(number, values)


def _not_json(number: int, problem: str) -> RowProblem:
    return RowProblem(number, "", "NOT_JSON", f"not JSON: {problem}")


def _too_deep(number: int) -> RowProblem:
    return RowProblem(number, "", "NESTED_TOO_DEEPLY", "not JSON that can be read: values inside values without end")


class _Values:
    """JSON values one after the other, or the elements of one array.

    After a syntax error nobody knows where the next element begins: what follows it is not read.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._scan = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._line = 1
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
                        yield _not_json(number, f"a comma is missing before it, on line {self._line}")
                        return
                    self._at += 1
                    self._peek()
                found = self._value(number)
                yield found
                if isinstance(found, RowProblem) and found.reason in ("NOT_JSON", "ROW_TOO_LONG", "NESTED_TOO_DEEPLY"):
                    return
            if in_array and not character:
                yield _not_json(number + 1, "the array does not end; the file is cut off")
            elif in_array:
                self._at += 1
                if self._peek():
                    yield _not_json(number + 1, f"something stands behind the end of the array, on line {self._line}")
        except UnicodeDecodeError:
            yield RowProblem(number + 1, "", "NOT_UTF8", "not UTF-8, in this row or the next; save the file as UTF-8")

    def _value(self, number: int) -> Row | RowProblem:
        wanted = _CHUNK
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _NEAR_THE_END
                if self._ended or not unfinished:
                    line = self._line + self._text.count("\n", self._at, error.pos)
                    return _not_json(number, f"{error.msg.removesuffix(' at')} on line {line}")
            except RecursionError:
                return _too_deep(number)
            except ValueError as error:
                return _not_json(number, str(error))
            else:
                if end < len(self._text) or self._ended:
                    brackets = self._text.count("{", self._at, end) + self._text.count("[", self._at, end)
                    self._line += self._text.count("\n", self._at, end)
                    self._at = end
                    return _row(number, value, brackets)
            held = len(self._text) - self._at
            if held > MAX_ROW_BYTES:
                return too_long(number)
            # Twice as much each time: what was read is read again from its beginning.
            self._read(min(wanted, MAX_ROW_BYTES + _CHUNK - held))
            wanted *= 2

    def _peek(self) -> str:
        """The next character that is no space; empty at the end."""
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
