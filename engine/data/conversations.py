"""Reads the turns of a conversation in the notations of OpenAI and ShareGPT, with or without tool calls.

Functions that read a turn add the keys whose values they don't use to `unused`, as paths such as `messages[].id`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from engine.data.json_files import json_error
from engine.data.row_errors import BadValue
from engine.data.rows import is_too_deep, json_type
from engine.data.turn_weights import MASKS, TRAINS, is_trained

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
_TURN_KEYS: Final = frozenset(
    ("role", "from", "content", "value", "tool_calls", "function_call", *THOUGHT_NAMES, *TRAINS, *MASKS)
)
_CALL_KEYS: Final = ("name", "arguments", "parameters")
_NAMES: Final = {"user": ("name",), "assistant": ("name",), "tool": ("name", "tool_call_id")}
"""Names and ids that a turn of a role may have."""
NO_VALUES: Final[tuple[Any, ...]] = (None, "", [], {})
"""Values that mean that a key is absent. The others are reported if they are not used."""


def turns(value: Any, column: str, unused: set[str]) -> tuple[list[Message], frozenset[int]]:
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
        found: set[str] = set()
        message = _turn(turn, place, found)
        unused.update(f"{column}[].{key}" for key in found)
        messages.append(message)
        if not is_trained(turn, place, is_answer=message["role"] == "assistant"):
            untrained.add(index)
    return messages, frozenset(untrained)


def tools_of(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the tools in the columns `tools` or `functions` of a row, as JSON schemas; an empty list if there are
    none."""
    listed, older = _schemas(values.get("tools"), "tools"), _schemas(values.get("functions"), "functions")
    # `functions` is OpenAI's older name for tools: schemas without the outer object.
    wrapped = [{"type": "function", "function": schema} for schema in older]
    if listed and wrapped and listed != wrapped:
        raise _contradictory("the row", "tools and functions")
    return listed or wrapped


def _schemas(value: Any, column: str) -> list[dict[str, Any]]:
    listed = unpacked(value, column) if value not in (None, "") else []
    if not isinstance(listed, list) or not all(isinstance(schema, dict) for schema in listed):
        raise BadValue(column, "WRONG_TYPE", f"column {column} must be an array of JSON schemas")
    _check_json(listed, column)
    return listed


def _check_json(value: Any, place: str) -> None:
    """Raises BadValue if a value cannot be written as JSON that a tokenizer takes."""
    try:
        encodable(json.dumps(value, ensure_ascii=False), place)
    except TypeError as error:
        # Parquet has types that JSON lacks, such as timestamps.
        raise BadValue(place, "WRONG_TYPE", f"{place} has a value that is not JSON: {error}") from None


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
        what = "an invalid Unicode character (half a surrogate pair)"
        message = f"column {column} has {what} at position {error.start + 1}; remove it"
        raise BadValue(column, "NOT_TEXT", message) from None
    if "\0" in text:
        raise BadValue(column, "NUL_CHARACTER", f"column {column} has a NUL character; remove it")
    return text


def a(value: Any) -> str:
    """Returns the JSON type of a value with its article, such as "an array"."""
    kind = json_type(value)
    shown = f" ({value})" if kind in ("number", "boolean") else ""
    return ("an " if kind[0] in "ao" else "a ") * (value is not None) + kind + shown


def _turn(turn: Any, place: str, unused: set[str]) -> Message:
    if not isinstance(turn, dict):
        raise BadValue(place, "WRONG_TYPE", f'{place} is {a(turn)}; a turn is {{"role": "user", "content": "…"}}')
    message: Message = {"role": _role(turn, place)}
    role = message["role"]
    content = _one_of(turn, ("content", "value"), place)
    calls = _calls_of(turn, content, place, unused)
    if calls:
        if role != "assistant":
            raise BadValue(place, "MISPLACED_TOOL_CALL", f"{place} calls a tool; only assistant turns can")
        message["tool_calls"] = calls
    if _is_function_call(turn):
        content = ""
    thought = _thought(turn, place)
    if isinstance(content, list) and role == "assistant":
        thought, content = _without_thoughts(content, thought, place, unused)
    message["content"] = _content(turn, content, place, role, unused, has_calls=bool(calls))
    if thought and role == "assistant":
        message[THOUGHT_NAMES[0]] = encodable(thought, place)
    elif thought:
        unused.update(name for name in THOUGHT_NAMES if turn.get(name))
    names = _NAMES.get(role, ())
    for key in names:
        if (name := turn.get(key)) not in (None, ""):
            if not isinstance(name, str):
                raise BadValue(place, "WRONG_TYPE", f"{place} has {a(name)} for {key}; write it as a string")
            message[key] = encodable(name, place)
    _note_unused(turn, (*_TURN_KEYS, *names), unused)
    return message


def _note_unused(given: Mapping[str, Any], used: Iterable[str], unused: set[str], prefix: str = "") -> None:
    unused.update(prefix + key for key in given.keys() - set(used) if given[key] not in NO_VALUES)


def _one_of(given: Mapping[str, Any], names: Sequence[str], place: str) -> Any:
    """Returns the value of keys that mean the same. Raises BadValue("CONTRADICTORY_KEYS") if they have several."""
    found = [name for name in names if given.get(name) not in (None, "")]
    if different := [name for name in found if given[name] != given[found[0]]]:
        raise _contradictory(place, f"{found[0]} and {different[0]}")
    return given[found[0]] if found else next((given[name] for name in names if given.get(name) is not None), None)


def _contradictory(place: str, keys: str) -> BadValue:
    message = f"{place} has {keys}, which mean the same, with different values; keep one of them"
    return BadValue(place, "CONTRADICTORY_KEYS", message)


def _role(turn: Mapping[str, Any], place: str) -> str:
    said = next((turn[key] for key in ("role", "from") if turn.get(key) not in (None, "")), None)
    if said is None:
        names = [key for key in turn if key.lower() in ROLES]
        hint = f'{{"role": "{names[0].lower()}", "content": "…"}}' if names else '"role": "user" or "assistant"'
        has = "" if "role" in turn or "from" in turn else f" (it has {', '.join(key[:40] for key in list(turn)[:10])})"
        raise BadValue(place, "MISSING_ROLE", f"{place} has no role{has if turn else ''}; write {hint}")
    role = said.lower() if isinstance(said, str) else ""
    other = turn.get("from")
    if other not in (None, "") and (not isinstance(other, str) or ROLES.get(other.lower()) != ROLES.get(role)):
        raise _contradictory(place, "role and from")
    if role not in ROLES:
        message = f"{place} has the unknown role {str(said)[:40]!r}; the known roles are {', '.join(ROLES)}"
        raise BadValue(place, "UNKNOWN_ROLE", message)
    return ROLES[role]


def _is_function_call(turn: Mapping[str, Any]) -> bool:
    """Returns True for a turn of ShareGPT whose content is a tool call."""
    return any(str(turn.get(key)).lower() == "function_call" for key in ("role", "from"))


def _thought(turn: Mapping[str, Any], place: str) -> str:
    """Returns the reasoning of a turn; empty if it has none."""
    given = {}
    for name in THOUGHT_NAMES:
        thought = turn.get(name)
        if not isinstance(thought, str | None):
            raise BadValue(place, "WRONG_TYPE", f"{place} has {a(thought)} for {name}; write it as a string")
        if thought and thought.strip():
            given[name] = thought
    return _one_of(given, THOUGHT_NAMES, place) or ""


def _without_thoughts(content: list[Any], thought: str, place: str, unused: set[str]) -> tuple[str, list[Any]]:
    """Returns the reasoning of a turn and the other parts of its content. Reasoning is a part such as
    {"type": "thinking", "thinking": "…"}."""
    thoughts, others = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        key = kind if kind in THOUGHT_NAMES and kind in part else "text"
        if kind in THOUGHT_NAMES and isinstance(part.get(key), str):
            thoughts.append(part[key])
            _note_unused(part, ("type", key), unused, "content[].")
        else:
            others.append(part)
    joined = "".join(thoughts)
    if thought and joined.strip() and thought != joined:
        raise _contradictory(place, "reasoning and a part of its content with reasoning")
    return thought or (joined if joined.strip() else ""), others


def _content(turn: Mapping[str, Any], content: Any, place: str, role: str, unused: set[str], *, has_calls: bool) -> str:
    if isinstance(content, list):
        content = "".join(_text_of_part(part, place, unused) for part in content)
    if content is None and has_calls:
        content = ""
    if content is None:
        if "content" in turn or "value" in turn:
            raise BadValue(place, "EMPTY_VALUE", f"{place} has null for content", "leaves_out")
        has = ", ".join(key[:40] for key in list(turn)[:10])
        raise BadValue(place, "EMPTY_VALUE", f"{place} has no content (it has {has})", "leaves_out")
    if not isinstance(content, str):
        message = f"{place} has {a(content)} for content; content must be a string; encode an object with json.dumps"
        raise BadValue(place, "WRONG_TYPE", message)
    # An empty answer would train the model to answer nothing. A tool may return nothing.
    if not content.strip() and role in ("user", "assistant") and not has_calls:
        raise BadValue(place, "EMPTY_VALUE", f"{place} is empty", "leaves_out")
    return encodable(content, place)


def _text_of_part(part: Any, place: str, unused: set[str]) -> str:
    """Returns the text of one part of a turn's content."""
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind in (None, *_TEXT_PARTS) and isinstance(part.get("text"), str):
        media = next((key for key in _MEDIA_KEYS if part.get(key)), None)
        if media is None:
            _note_unused(part, ("type", "text"), unused, "content[].")
            return str(part["text"])
        kind = media
    said = f"a part of type {str(kind)[:40]}" if kind else f"a part that is {a(part)} without text"
    message = f"{place} has {said}; only text is trained; drop these rows, or remove the part"
    raise BadValue(place, "UNSUPPORTED_CONTENT", message)


def _calls_of(turn: Mapping[str, Any], content: Any, place: str, unused: set[str]) -> list[dict[str, Any]]:
    """Returns the tool calls of a turn: a list under tool_calls; one call under function_call, OpenAI's first notation;
    or the content of a turn with the role function_call."""
    calls = turn.get("tool_calls")
    given = [("tool_calls", calls)] if calls not in (None, "", []) else []
    if turn.get("function_call") not in NO_VALUES:
        given.append(("function_call", [turn["function_call"]]))
    if _is_function_call(turn):
        said = unpacked(content, place)
        given.append(("content with the role function_call", said if isinstance(said, list) else [said]))
    found = [(name, _calls(listed, place, unused)) for name, listed in given]
    for name, listed in found[1:]:
        if [call["function"] for call in listed] != [call["function"] for call in found[0][1]]:
            raise _contradictory(place, f"{found[0][0]} and {name}")
    return found[0][1] if found else []


def _calls(calls: Any, place: str, unused: set[str]) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise BadValue(place, "WRONG_TYPE", f"{place}.tool_calls is {a(calls)}; it must be an array of calls")
    return [_call(call, place, unused) for call in calls]


def _call(call: Any, place: str, unused: set[str]) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise _bad_call(place, f"a tool with {a(call)}; a call must be an object")
    function = call.get("function", call)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        raise _bad_call(place, "a tool without a name")
    arguments = _one_of(function, ("arguments", "parameters"), place)
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise _bad_call(place, f"{name[:80]} with arguments that are not JSON") from None
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict) or is_too_deep(arguments):
        raise _bad_call(place, f"{name[:80]} with arguments that are {a(arguments)}; they must be an object")
    _check_json(arguments, place)
    whole = {"type": "function", "function": {"name": encodable(name, place), "arguments": arguments}}
    if (id_ := call.get("id")) not in (None, ""):
        if not isinstance(id_, str):
            raise BadValue(place, "WRONG_TYPE", f"{place} has {a(id_)} for the id of a call; write it as a string")
        whole["id"] = encodable(id_, place)
    if call.get("type") not in (None, "", "function"):
        unused.add("tool_calls[].type")
    if function is call:
        _note_unused(call, ("type", "id", *_CALL_KEYS), unused, "tool_calls[].")
    else:
        _note_unused(call, ("type", "id", "function"), unused, "tool_calls[].")
        _note_unused(function, _CALL_KEYS, unused, "tool_calls[].function.")
    return whole


def _bad_call(place: str, what: str) -> BadValue:
    return BadValue(place, "BAD_TOOL_CALL", f"{place} calls {what}", "leaves_out")
