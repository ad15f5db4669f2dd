"""The turns of a conversation, however they are written: OpenAI's, ShareGPT's, with calls of tools or without."""

import json
from collections.abc import Mapping
from typing import Any

from engine.data.json_files import what_is_wrong
from engine.data.rows import Effect, is_too_deep, json_type

Message = dict[str, Any]
"""A turn as chat templates take it: role (system, user, assistant or tool), content, and where it has them tool_calls,
name, tool_call_id and reasoning_content."""

THOUGHT_NAMES = ("reasoning_content", "reasoning", "thinking")
"""Keys under which a turn has its thought; the first is ours."""

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}


class BadValue(Exception):
    """What is wrong with a value of a row."""

    def __init__(self, column: str, reason: str, message: str, effect: Effect = "refuses") -> None:
        super().__init__(message)
        self.column, self.reason, self.message, self.effect = column, reason, message, effect


def turns(value: Any, column: str) -> tuple[list[Message], frozenset[int]]:
    """The turns in `value`, and the indices of assistant turns that are not to be trained."""
    listed = unpacked(value, column)
    if not isinstance(listed, list):
        raise BadValue(column, "WRONG_TYPE", f"column {column} is {a(listed)}; it must be an array of turns")
    if not listed:
        raise BadValue(column, "EMPTY_VALUE", f"column {column} has no turns", "leaves_out")
    messages = []
    untrained = set()
    for index, turn in enumerate(listed):
        place = f"{column}[{index}]"
        message = _turn(turn, place)
        messages.append(message)
        if not _trained(turn, message, place):
            untrained.add(index)
    return messages, frozenset(untrained)


def tools(value: Any) -> list[dict[str, Any]]:
    """The tools that a conversation may call, as JSON schemas; an empty list for none."""
    listed = unpacked(value, "tools") if value not in (None, "") else []
    if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
        raise BadValue("tools", "WRONG_TYPE", "column tools must be an array of JSON schemas")
    return [without_nulls(tool) for tool in listed]


def unpacked(value: Any, column: str) -> Any:
    """A list or object itself, or out of a string that is JSON, as tables hold it."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadValue(column, "NOT_JSON", f"column {column} is text that is no JSON: {what_is_wrong(error)}") from None
    if is_too_deep(found):
        raise BadValue(column, "NESTED_TOO_DEEPLY", f"column {column} has values inside values without end")
    return found


def without_nulls(value: Any) -> Any:
    """Parquet gives every object every key of its column: those that are null were never there."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def encodable(text: str, column: str) -> str:
    """The text, unless no tokenizer takes it or nobody can have meant it."""
    # JSON can spell half a surrogate pair.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"column {column} holds half a surrogate pair at character {error.start + 1}; remove it"
        raise BadValue(column, "NOT_TEXT", message) from None
    if "\0" in text:
        raise BadValue(column, "NUL_CHARACTER", f"column {column} holds a NUL character; remove it")
    return text


def a(value: Any) -> str:
    """A value's type, with an article."""
    kind = json_type(value)
    shown = f" ({value})" if kind in ("number", "boolean") else ""
    return ("an " if kind[0] in "ao" else "a ") * (value is not None) + kind + shown


def _turn(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise BadValue(place, "WRONG_TYPE", f'{place} is {a(turn)}; a turn is {{"role": "user", "content": "…"}}')
    said = _given(turn, "role", "from")
    role = said.lower() if isinstance(said, str) else ""
    if role not in ROLES:
        raise BadValue(place, "UNKNOWN_ROLE", f"{place} has role {str(said)[:40]!r}; known are {', '.join(ROLES)}")
    message: Message = {"role": ROLES[role]}
    content = _given(turn, "content", "value")
    # OpenAI's first way to call, one at a time.
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    if role == "function_call":
        calls, content = unpacked(content, place), ""
        calls = calls if isinstance(calls, list) else [calls]
    if calls:
        if message["role"] != "assistant":
            raise BadValue(place, "MISPLACED_TOOL_CALL", f"{place} calls a tool; only the assistant can")
        message["tool_calls"] = _calls(calls, place)
    thought = next((turn[name] for name in THOUGHT_NAMES if isinstance(turn.get(name), str) and turn[name].strip()), "")
    if isinstance(content, list):
        thought = thought or "".join(filter(None, map(_thought, content)))
        content = [part for part in content if _thought(part) is None]
    message["content"] = _content(content, place, message["role"], has_calls=bool(calls))
    if thought.strip():
        message[THOUGHT_NAMES[0]] = encodable(thought, place)
    for key in ("name", "tool_call_id"):
        if isinstance(turn.get(key), str):
            message[key] = encodable(turn[key], place)
    return message


def _thought(part: Any) -> str | None:
    """The thought in a part such as {"type": "thinking", "thinking": "…"} of a turn's content; None in others."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in THOUGHT_NAMES:
        return None
    thought = part.get(kind, part.get("text"))
    return thought if isinstance(thought, str) else None


def _content(content: Any, place: str, role: str, *, has_calls: bool) -> str:
    if isinstance(content, list):
        parts = [without_nulls(part) for part in content]
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
            raise BadValue(place, "UNSUPPORTED_CONTENT", f"{place} has parts that are no text; only text is trained on")
        content = "".join(part["text"] for part in parts)
    if content is None and has_calls:
        content = ""
    if not isinstance(content, str):
        raise BadValue(place, "WRONG_TYPE", f"{place} has {a(content)} for content; it must be a string")
    # An empty answer would train the model to say nothing. A tool may well return nothing.
    if not content.strip() and role in ("user", "assistant") and not has_calls:
        raise BadValue(place, "EMPTY_VALUE", f"{place} is empty", "leaves_out")
    return encodable(content, place)


def _calls(calls: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise BadValue(place, "WRONG_TYPE", f"{place}.tool_calls is {a(calls)}; it must be an array of calls")
    found = []
    for call in calls:
        if not isinstance(call, dict):
            raise _bad_call(place, f"a tool with {a(call)}, not an object")
        function = call.get("function", call)
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name:
            raise _bad_call(place, "a tool without saying its name")
        arguments = function.get("arguments", function.get("parameters"))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                raise _bad_call(place, f"{name[:80]} with arguments that are no JSON") from None
        arguments = {} if arguments is None else without_nulls(arguments)
        if not isinstance(arguments, dict) or is_too_deep(arguments):
            raise _bad_call(place, f"{name[:80]} with arguments that are {a(arguments)}, not an object of names")
        encodable(json.dumps(arguments, ensure_ascii=False), place)
        whole = {"type": "function", "function": {"name": encodable(name, place), "arguments": arguments}}
        if isinstance(call.get("id"), str):
            whole["id"] = call["id"]
        found.append(whole)
    return found


def _bad_call(place: str, what: str) -> BadValue:
    return BadValue(place, "BAD_TOOL_CALL", f"{place} calls {what}", "leaves_out")


def _trained(turn: Mapping[str, Any], message: Message, place: str) -> bool:
    """What `train` or `weight` of a turn say; without them every answer is trained."""
    is_answer: bool = message["role"] == "assistant"
    for key in ("train", "weight"):
        value = turn.get(key)
        if value is None:
            continue
        if value not in (0, 1):
            raise BadValue(
                place, "BAD_WEIGHT", f"{place} has {key} = {str(value)[:40]}; it must be 0 or 1, true or false"
            )
        if value and not is_answer and key == "train":
            raise BadValue(place, "NOT_AN_ANSWER", f"{place} asks to be trained; only assistant turns can be")
        return bool(value)
    return True


def _given(turn: Mapping[str, Any], ours: str, theirs: str) -> Any:
    value = turn.get(ours)
    return turn.get(theirs) if value is None else value
