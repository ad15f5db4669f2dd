"""Normal forms of answers: words, numbers, JSON, tool calls."""

import json
import re
import unicodedata
from typing import Any

_SPACES = re.compile(r"\s+")
_NUMBER = re.compile(r"(?:(?<![\w.,)])[-+])?(?:\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?|(?<!\d)\.\d+)")
_MINUS = "\u2212"
_MAX_ATTEMPTS = 200
"""Brackets of an answer that are tried as the beginning of a tool call."""
_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)
_WITHOUT_SPACES = re.compile(
    # Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar: written without spaces between words.
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]"
)


def normalized(text: str) -> str:
    """Returns a text in Unicode form NFKC, case-folded: its letters, marks and digits, all else as single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in folded)
    return _SPACES.sub(" ", kept).strip()


def words(text: str) -> list[str]:
    """Returns the words of a text in any script; a letter of a script that has no spaces counts as a word."""
    return _WITHOUT_SPACES.sub(lambda letter: f" {letter[0]} ", normalized(text)).split()


def last_number(text: str) -> float | None:
    """Returns the last number in a text, thousands separated by commas or not; None if there is none."""
    found = _NUMBER.findall(text.replace(_MINUS, "-"))
    return float(found[-1].replace(",", "")) if found else None


def json_value(text: str) -> tuple[bool, Any]:
    """Returns whether a text is JSON, alone or as its only fenced block, and its value.

    NaN and infinity are no JSON.
    """
    stripped = text.strip()
    blocks = _FENCED.findall(stripped)
    for candidate in (stripped, *(blocks if len(blocks) == 1 else ())):
        try:
            return True, json.loads(candidate, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            continue
    return False, None


def same_json(one: Any, other: Any) -> bool:
    """Returns True for equal JSON values: 1 equals 1.0, but not true."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def tool_calls(text: str) -> list[tuple[str, Any]]:
    """Returns name and arguments of the tool calls in an answer: JSON objects with a `name` and `arguments` or
    `parameters`, in tags or not."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    found: list[tuple[str, Any]] = []
    position = attempts = 0
    while (
        attempts < _MAX_ATTEMPTS
        and (start := min((at for at in (text.find("{", position), text.find("[", position)) if at >= 0), default=-1))
        >= 0
    ):
        try:
            value, position = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            position = start + 1
            attempts += 1
            continue
        for call in value if isinstance(value, list) else [value]:
            if (called := _call(call)) is not None:
                found.append(called)
    return found


def _call(value: Any) -> tuple[str, Any] | None:
    if not isinstance(value, dict):
        return None
    inner = value.get("function")
    if isinstance(inner, dict):
        return _call(inner)
    arguments = value.get("arguments", value.get("parameters"))
    if not isinstance(value.get("name"), str) or arguments is None:
        return None
    if isinstance(arguments, str):
        is_json, parsed = json_value(arguments)
        arguments = parsed if is_json else arguments
    return value["name"], arguments


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
