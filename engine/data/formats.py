"""What a row means: from the columns of five formats to one example.

| format            | columns                                                    | becomes                           |
|-------------------|------------------------------------------------------------|-----------------------------------|
| chat              | `messages` or `conversations` (role/content or from/value) | a conversation                    |
| question_answer   | `question`, `answer`, `system`?                            | a conversation of one turn each   |
| instruction       | `instruction`, `input`?, `output`, `system`?               | the same, input after instruction |
| prompt_completion | `prompt`, `completion`: both text, or both lists of turns  | plain text, or a conversation     |
| text              | `text`                                                     | plain text, trained as a whole    |
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.data.rows import Row, RowProblem, json_type

Message = dict[str, str]
"""A turn: role (system, user or assistant) and content."""

_REQUIRED: dict[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "question_answer": ("question", "answer"),
    "instruction": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
_ANSWERS = ("answer", "output", "completion")
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


@dataclass(frozen=True)
class Example:
    """One row as it is trained on: a conversation, or a prompt and its continuation as plain text.

    Of a conversation the assistant turns from index `answers_from` on are trained; of plain text, `completion`.
    instruction, input and expected_output are what a person compares an answer with.
    """

    row: int
    messages: list[Message] = field(default_factory=list)
    answers_from: int = 0
    prompt: str = ""
    completion: str = ""
    instruction: str = ""
    input: str = ""
    expected_output: str = ""

    @property
    def is_chat(self) -> bool:
        return bool(self.messages)


class _Bad(Exception):
    def __init__(self, column: str, reason: str, message: str) -> None:
        super().__init__(message)
        self.column, self.reason, self.message = column, reason, message


class RowReader:
    """Turns the rows of one dataset into examples. The first row that has a known column decides the format."""

    def __init__(self, mapping: Mapping[str, str], system_prompt: str | None) -> None:
        self._mapping = mapping
        self._system_prompt = system_prompt
        self._unseen = dict(mapping)
        self._columns: dict[str, None] = {}
        self.format = ""
        """Name of the detected format; empty before the first row that has one."""

    def read(self, row: Row) -> Iterator[Example | RowProblem]:
        """The example a row makes, or what is wrong with the row."""
        values = self._renamed(row.values)
        if not self.format:
            self.format = _detect(values)
        try:
            if not self.format:
                raise _Bad("", "UNKNOWN_FORMAT", f"has none of the known columns; it has {_listed(row.values)}")
            yield self._example(row.number, values)
        except _Bad as bad:
            yield RowProblem(row.number, bad.column, bad.reason, bad.message)

    def unseen_columns(self) -> dict[str, str]:
        """Entries of the mapping whose column no row had so far, each with what is wrong about it."""
        found = {}
        for ours, theirs in self._unseen.items():
            close = difflib.get_close_matches(theirs, list(self._columns), n=1)
            hint = f"Did you mean {close[0]}?" if close else f"The file has {_listed(self._columns)}."
            found[ours] = f"No row has a column {theirs!r}. {hint}"
        return found

    def _renamed(self, values: dict[str, Any]) -> dict[str, Any]:
        if len(self._columns) < 1000:
            self._columns.update(dict.fromkeys(values))
        taken = set(self._mapping.values())
        renamed = {name: value for name, value in values.items() if name not in taken}
        for ours, theirs in self._mapping.items():
            renamed.pop(ours, None)
            if theirs in values:
                renamed[ours] = values[theirs]
                self._unseen.pop(ours, None)
        if "messages" not in renamed and "conversations" in renamed:
            renamed["messages"] = renamed.pop("conversations")
        return renamed

    def _example(self, number: int, values: dict[str, Any]) -> Example:
        match self.format:
            case "chat":
                return _chat(number, self._with_system(_turns(values, "messages")), 0)
            case "question_answer":
                question, answer = _text(values, "question"), _text(values, "answer")
                return self._single_turn(number, values, question, "", answer)
            case "instruction":
                instruction, answer = _text(values, "instruction"), _text(values, "output")
                return self._single_turn(number, values, instruction, _optional(values, "input"), answer)
            case "prompt_completion":
                return self._prompt_completion(number, values)
            case _:
                text = _text(values, "text")
                return Example(number, completion=text, expected_output=text)

    def _single_turn(self, number: int, values: dict[str, Any], instruction: str, input_: str, answer: str) -> Example:
        system = _optional(values, "system")
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": f"{instruction}\n\n{input_}" if input_ else instruction})
        messages.append({"role": "assistant", "content": answer})
        return Example(
            number, self._with_system(messages), 0, instruction=instruction, input=input_, expected_output=answer
        )

    def _prompt_completion(self, number: int, values: dict[str, Any]) -> Example:
        prompt, completion = values.get("prompt"), values.get("completion")
        if isinstance(prompt, list) or isinstance(completion, list):
            before = self._with_system(_turns(values, "prompt"))
            after = _turns(values, "completion")
            return _chat(number, before + after, len(before))
        prompt, completion = _text(values, "prompt"), _text(values, "completion")
        return Example(number, prompt=prompt, completion=completion, instruction=prompt, expected_output=completion)

    def _with_system(self, messages: list[Message]) -> list[Message]:
        if self._system_prompt and messages[0]["role"] != "system":
            return [{"role": "system", "content": self._system_prompt}, *messages]
        return messages


def _detect(values: Mapping[str, Any]) -> str:
    """The format most of whose required columns are there; the order of the formats decides between equals."""
    shares = {name: sum(column in values for column in columns) / len(columns) for name, columns in _REQUIRED.items()}
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] else ""


def _chat(number: int, messages: list[Message], answers_from: int) -> Example:
    if any(message["role"] == "system" for message in messages[1:]):
        raise _Bad("messages", "MISPLACED_SYSTEM", "has a system turn that is not the first; move it to the front")
    if messages[-1]["role"] != "assistant":
        message = "has no answer: its last turn must be the assistant's; drop what follows it, or add the answer"
        raise _Bad("messages", "NO_ANSWER", message)
    if messages[0 if messages[0]["role"] != "system" else 1]["role"] == "assistant":
        raise _Bad("messages", "NO_QUESTION", "begins with an answer; put what is answered before it")
    asked = [message["content"] for message in messages[:-1] if message["role"] == "user"]
    answer = messages[-1]["content"]
    return Example(number, messages, answers_from, instruction=asked[-1] if asked else "", expected_output=answer)


def _turns(values: Mapping[str, Any], column: str) -> list[Message]:
    turns = _present(values, column)
    if not isinstance(turns, list):
        raise _Bad(column, "WRONG_TYPE", f"column {column} is {_a(turns)}; it must be an array of turns")
    if not turns:
        raise _Bad(column, "EMPTY_VALUE", f"column {column} has no turns; drop the row, or add them")
    return [_turn(turn, f"{column}[{index}]") for index, turn in enumerate(turns)]


def _turn(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise _Bad(place, "WRONG_TYPE", f'{place} is {_a(turn)}; a turn is {{"role": "user", "content": "…"}}')
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role not in _ROLES:
        raise _Bad(place, "UNKNOWN_ROLE", f"{place} has role {str(role)[:40]!r}; known are {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise _Bad(place, "WRONG_TYPE", f"{place} has {_a(content)} for content; it must be a string")
    # An empty answer would train the model to say nothing.
    if not content.strip() and role != "system":
        raise _Bad(place, "EMPTY_VALUE", f"{place} is empty; drop the row, or fill it")
    return {"role": _ROLES[role], "content": _encodable(content, place)}


def _present(values: Mapping[str, Any], column: str) -> Any:
    if values.get(column) is None:
        reason = "NO_ANSWER" if column in _ANSWERS else "MISSING_COLUMN"
        if column in values:
            raise _Bad(column, reason, f"column {column} is null; drop the row, or fill it")
        hint = f'add it, or name the column that holds it with mapping: {column} = "…"'
        raise _Bad(column, reason, f"has no {column} (it has {_listed(values)}); {hint}")
    return values[column]


def _text(values: Mapping[str, Any], column: str) -> str:
    value = _present(values, column)
    if not isinstance(value, str):
        raise _Bad(column, "WRONG_TYPE", f"column {column} is {_a(value)}; write it as a string")
    if not value.strip():
        reason = "NO_ANSWER" if column in _ANSWERS else "EMPTY_VALUE"
        raise _Bad(column, reason, f"column {column} is empty; drop the row, or fill it")
    return _encodable(value, column)


def _optional(values: Mapping[str, Any], column: str) -> str:
    value = values.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Bad(column, "WRONG_TYPE", f"column {column} is {_a(value)}; write it as a string, or leave it out")
    return _encodable(value, column) if value.strip() else ""


def _encodable(text: str, column: str) -> str:
    # JSON can spell half a surrogate pair, which no tokenizer takes.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"column {column} holds half a surrogate pair at character {error.start + 1}; remove it"
        raise _Bad(column, "NOT_TEXT", message) from None
    return text


def _a(value: Any) -> str:
    kind = json_type(value)
    shown = f" ({value})" if kind in ("number", "boolean") else ""
    return ("an " if kind[0] in "ao" else "a ") * (value is not None) + kind + shown


def _listed(columns: Mapping[str, Any]) -> str:
    names = list(columns)
    return ", ".join(name[:40] for name in names[:10]) + (", …" if len(names) > 10 else "") if names else "no columns"
