"""Detects the layout of a JSON file from its start."""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from engine.data.rows import MAX_ROW_BYTES
from engine.data.streams import RowStream

_ARRAY = re.compile(rb"\[\s*(\{|$)")
_KEYED = re.compile(rb'\s*\{\s*("(?:[^"\\]|\\.)*")\s*:\s*(?=(\[)\s*(\{))')
_FIRST_LINE = re.compile(rb"\s*([^\r\n]*)")
_TURN_KEYS = {"role", "from"}
_LISTS_IN_A_ROW = ("messages", "conversations", "tools", "functions")
"""Columns of a row that hold arrays of objects: an object with only such a key is a row, never a file of rows."""

Kind = Literal["lines", "array", "objects", "keyed", "unknown"]


@dataclass(frozen=True)
class JsonShape:
    """The layout of a file: one object per line, one array, objects that span several lines each, one object with the
    rows under its only key, or unknown because the start is not JSON."""

    kind: Kind
    key: str = ""
    """The key that holds the rows; only for keyed."""
    skip: int = 0
    """Bytes before the array of rows; only for keyed."""


def shape_of(file: RowStream) -> JsonShape:
    """Returns the layout of a file, which must be at its start. Consumes nothing."""
    head = file.peek()
    if head.lstrip().startswith(b"["):
        return JsonShape("array")
    if not head.lstrip().startswith(b"{"):
        return JsonShape("unknown")
    found = _first_value(head)
    if found is None:
        # Buffering as much as the longest row takes is needed only if the first row exceeds the buffer.
        head = file.look_ahead(MAX_ROW_BYTES + 1)
        found = _first_value(head)
    return _shape_of_broken(head) if found is None else _shape_of_object(head, *found)


def is_array_of_objects(file: RowStream) -> bool:
    """Returns True if a file that starts with [ is one array of objects, not a file with one array per line."""
    head = file.peek()
    return bool(_ARRAY.match(_first_line(head))) and not _is_one_a_line(head)


def printable(key: str) -> str:
    """Returns a key, shortened and printable: JSON strings may hold half a surrogate pair."""
    return key.encode(errors="replace").decode()[:40]


def _shape_of_object(head: bytes, value: dict[str, Any], text: str, behind: str) -> JsonShape:
    """Returns the layout of a file whose first object is `value`, written as `text`."""
    spans_lines = "\n" in text or "\r" in text
    is_first_of_lines = not spans_lines and bool(behind.strip())
    if len(value) == 1 and not is_first_of_lines:
        ((key, rows),) = value.items()
        if key not in _LISTS_IN_A_ROW and _are_rows(rows) and (found := _KEYED.match(head)):
            return JsonShape("keyed", printable(key), found.end())
    if spans_lines:
        return JsonShape("objects")
    # With two objects on the first line, it is not a file of one object per line.
    return JsonShape("unknown" if behind.partition("\n")[0].strip() else "lines")


def _shape_of_broken(head: bytes) -> JsonShape:
    """Returns the layout of a file whose first object is longer than any row, incomplete, or not JSON."""
    found = _KEYED.match(head)
    if not found or _is_json_object(_second_line(head)):
        return JsonShape("unknown")
    text = head[found.start(2) :].decode("utf-8", errors="replace")
    try:
        key: str = json.loads(found[1])
        first, _ = json.JSONDecoder().raw_decode(text[found.start(3) - found.start(2) :])
    except (ValueError, RecursionError):
        return JsonShape("unknown")
    if key in _LISTS_IN_A_ROW or _TURN_KEYS & first.keys():
        return JsonShape("unknown")
    if len(head) <= MAX_ROW_BYTES and _has_more_keys(text):
        return JsonShape("unknown")
    return JsonShape("keyed", printable(key), found.end())


def _has_more_keys(text: str) -> bool:
    """Returns True if the text starts with a complete array and another key follows it."""
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return text[end:].lstrip().startswith(",")


def _first_value(head: bytes) -> tuple[dict[str, Any], str, str] | None:
    """Returns the first object of a file, its text, and the text after it; None if it is incomplete or not JSON."""
    text = head.decode("utf-8", errors="replace").lstrip()
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value, text[:end], text[end:]


def _are_rows(value: Any) -> bool:
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return False
    return not _TURN_KEYS & value[0].keys()


def _first_line(head: bytes) -> bytes:
    found = _FIRST_LINE.match(head)
    return found[1] if found else b""


def _second_line(head: bytes) -> bytes:
    """Returns the second line that is not blank."""
    found = _FIRST_LINE.match(head)
    second = _FIRST_LINE.match(head, found.end()) if found else None
    return second[1] if second else b""


def _is_one_a_line(head: bytes) -> bool:
    """Returns True if there are several lines and the first one is valid JSON by itself."""
    try:
        json.loads(_first_line(head))
    except (ValueError, RecursionError):
        return False
    return bool(_second_line(head))


def _is_json_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
