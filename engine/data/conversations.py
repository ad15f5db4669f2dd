"""Reads the turns of a conversation in the notations of OpenAI and ShareGPT, with or without tool calls."""

import json
from collections.abc import Mapping
from typing import Any

from engine.data.json_files import json_error
from engine.data.row_errors import BadValue
from engine.data.rows import is_too_deep, json_type
from engine.data.turn_weights import is_trained

Message = dict[str, Any]
"""A turn in the form that chat templates expect: role (system, user, assistant or tool), content, and, if given,
tool_calls, name, tool_call_id and reasoning_content."""

THOUGHT_NAMES = ("reasoning_content", "reasoning", "thinking")
"""Keys under which a turn may hold its reasoning; the first is the one that examples use."""

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


_MEDIA_KEYS = ("image", "image_url", "input_image", "audio", "input_audio", "video", "video_url", "file")
_TEXT_PARTS = ("text", "input_text", "output_text")


def turns(value: Any, column: str) -> tuple[list[Message], frozenset[int]]:
    """Returns the turns in `value`, and the indices of the assistant turns that are not trained."""
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
        if not is_trained(turn, place, is_answer=message["role"] == "assistant"):
            untrained.add(index)
    return messages, frozenset(untrained)


def tools(value: Any) -> list[dict[str, Any]]:
    """Returns the tools that a conversation may call, as JSON schemas; an empty list if there are none."""
    return list(_schemas(value, "tools"))


def functions(value: Any) -> list[dict[str, Any]]:
    """Returns the tools in a column `functions`, OpenAI's older name for tools: schemas without the outer object."""
    return [{"type": "function", "function": schema} for schema in _schemas(value, "functions")]


def _schemas(value: Any, column: str) -> list[dict[str, Any]]:
    listed = unpacked(value, column) if value not in (None, "") else []
    if not isinstance(listed, list) or not all(isinstance(schema, dict) for schema in listed):
        raise BadValue(column, "WRONG_TYPE", f"column {column} must be an array of JSON schemas")
    return listed


def unpacked(value: Any, column: str) -> Any:
    """Returns a list or object, parsed if it is text, as in tables. Text that does not start with [ or { is returned as
    it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadValue(column, "NOT_JSON", f"column {column} is text that is not JSON: {json_error(error)}") from None
    if is_too_deep(found):
        raise BadValue(column, "NESTED_TOO_DEEPLY", f"column {column} has values that are nested too deeply")
    return found


def encodable(text: str, column: str) -> str:
    """The text. Raises BadValue if no tokenizer takes it, or if it holds a NUL character."""
    # JSON can spell half a surrogate pair.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"column {column} has half a surrogate pair at character {error.start + 1}; remove it"
        raise BadValue(column, "NOT_TEXT", message) from None
    if "\0" in text:
        raise BadValue(column, "NUL_CHARACTER", f"column {column} has a NUL character; remove it")
    return text


def a(value: Any) -> str:
    """Returns the JSON type of a value with its article, such as "an array"."""
    kind = json_type(value)
    shown = f" ({value})" if kind in ("number", "boolean") else ""
    return ("an " if kind[0] in "ao" else "a ") * (value is not None) + kind + shown


def _turn(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise BadValue(place, "WRONG_TYPE", f'{place} is {a(turn)}; a turn is {{"role": "user", "content": "…"}}')
    message: Message = {"role": _role(turn, place)}
    content = _given(turn, "content", "value")
    # function_call is OpenAI's first notation: one call in a turn.
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    if str(_given(turn, "role", "from")).lower() == "function_call":
        calls, content = unpacked(content, place), ""
        calls = calls if isinstance(calls, list) else [calls]
    if calls:
        if message["role"] != "assistant":
            raise BadValue(place, "MISPLACED_TOOL_CALL", f"{place} calls a tool; only assistant turns can")
        message["tool_calls"] = _calls(calls, place)
    thought = next((turn[name] for name in THOUGHT_NAMES if isinstance(turn.get(name), str) and turn[name].strip()), "")
    if isinstance(content, list):
        thought = thought or "".join(filter(None, map(_thought, content)))
        content = [part for part in content if _thought(part) is None]
    message["content"] = _content(turn, content, place, message["role"], has_calls=bool(calls))
    if thought.strip():
        message[THOUGHT_NAMES[0]] = encodable(thought, place)
    for key in ("name", "tool_call_id"):
        if isinstance(turn.get(key), str):
            message[key] = encodable(turn[key], place)
    return message


def _role(turn: Mapping[str, Any], place: str) -> str:
    said = _given(turn, "role", "from")
    if said is None or said == "":
        names = [key for key in turn if key.lower() in ROLES]
        hint = f'{{"role": "{names[0].lower()}", "content": "…"}}' if names else '"role": "user" or "assistant"'
        has = "" if "role" in turn or "from" in turn else f" (it has {', '.join(key[:40] for key in list(turn)[:10])})"
        raise BadValue(place, "MISSING_ROLE", f"{place} has no role{has if turn else ''}; write {hint}")
    role = said.lower() if isinstance(said, str) else ""
    if role not in ROLES:
        message = f"{place} has the unknown role {str(said)[:40]!r}; the known roles are {', '.join(ROLES)}"
        raise BadValue(place, "UNKNOWN_ROLE", message)
    return ROLES[role]


def _thought(part: Any) -> str | None:
    """Returns the reasoning in a part such as {"type": "thinking", "thinking": "…"} of a turn's content; None in other
    parts."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in THOUGHT_NAMES:
        return None
    thought = part.get(kind, part.get("text"))
    return thought if isinstance(thought, str) else None


def _content(turn: Mapping[str, Any], content: Any, place: str, role: str, *, has_calls: bool) -> str:
    if isinstance(content, list):
        content = "".join(_text_of_part(part, place) for part in content)
    if content is None and has_calls:
        content = ""
    if content is None:
        if "content" in turn or "value" in turn:
            raise BadValue(place, "EMPTY_VALUE", f"{place} has null for content", "leaves_out")
        has = ", ".join(key[:40] for key in list(turn)[:10])
        raise BadValue(place, "EMPTY_VALUE", f"{place} has no content (it has {has})", "leaves_out")
    if not isinstance(content, str):
        message = f"{place} has {a(content)} for content; write it as a string, an object with json.dumps"
        raise BadValue(place, "WRONG_TYPE", message)
    # An empty answer would train the model to answer nothing. A tool may return nothing.
    if not content.strip() and role in ("user", "assistant") and not has_calls:
        raise BadValue(place, "EMPTY_VALUE", f"{place} is empty", "leaves_out")
    return encodable(content, place)


def _text_of_part(part: Any, place: str) -> str:
    """Returns the text of one part of a turn's content."""
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind in (None, *_TEXT_PARTS) and isinstance(part.get("text"), str):
        media = next((key for key in _MEDIA_KEYS if part.get(key)), None)
        if media is None:
            return str(part["text"])
        kind = media
    said = f"a part of type {str(kind)[:40]}" if kind else f"a part that is {a(part)} without text"
    message = f"{place} has {said}; only text is trained; drop these rows, or remove the part"
    raise BadValue(place, "UNSUPPORTED_CONTENT", message)


def _calls(calls: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise BadValue(place, "WRONG_TYPE", f"{place}.tool_calls is {a(calls)}; it must be an array of calls")
    found = []
    for call in calls:
        if not isinstance(call, dict):
            raise _bad_call(place, f"a tool with {a(call)}; a call must be an object")
        function = call.get("function", call)
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name:
            raise _bad_call(place, "a tool without a name")
        arguments = function.get("arguments", function.get("parameters"))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                raise _bad_call(place, f"{name[:80]} with arguments that are not JSON") from None
        arguments = {} if arguments is None else arguments
        if not isinstance(arguments, dict) or is_too_deep(arguments):
            raise _bad_call(place, f"{name[:80]} with arguments that are {a(arguments)}; they must be an object")
        encodable(json.dumps(arguments, ensure_ascii=False), place)
        whole = {"type": "function", "function": {"name": encodable(name, place), "arguments": arguments}}
        if isinstance(call.get("id"), str):
            whole["id"] = call["id"]
        found.append(whole)
    return found


def _bad_call(place: str, what: str) -> BadValue:
    return BadValue(place, "BAD_TOOL_CALL", f"{place} calls {what}", "leaves_out")


def _given(turn: Mapping[str, Any], ours: str, theirs: str) -> Any:
    value = turn.get(ours)
    return turn.get(theirs) if value is None else value
