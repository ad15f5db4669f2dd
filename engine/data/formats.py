"""Turns rows of seven formats into examples.

| format            | columns                                                   | becomes                           |
|-------------------|-----------------------------------------------------------|-----------------------------------|
| tokenized         | `input_ids`, `labels`?, `attention_mask`?                 | token ids as they are             |
| chat              | `messages` or `conversations` (role/content, from/value), | a conversation                    |
|                   | `tools` or `functions`?, `system`?                        |                                   |
| question_answer   | `question`, `answer`, `system`?                           | a conversation of one turn each   |
| instruction       | `instruction`, `input`?, `output`, `system`?              | the same, input after instruction |
| prompt_completion | `prompt`, `completion`: both text, or both lists of turns | plain text, or a conversation     |
| preference        | `chosen`, `rejected`, `prompt`?                           | refused                           |
| text              | `text`                                                    | plain text, trained as a whole    |

Every assistant turn of a conversation is trained, except those that `turn_weights` excludes. Turns before the first
question of a conversation, and after its last answer, are dropped with a warning.
"""

import difflib
import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.config.advice import mapping
from engine.data.conversations import NO_VALUES, Message, a, encodable, tools_of, turns, unpacked
from engine.data.row_errors import BadValue
from engine.data.rows import Effect, Row, RowProblem, without_padding
from engine.data.unsupported_columns import placeholder, refuse_media, refuse_preferences, unused_columns

_REQUIRED: dict[str, tuple[str, ...]] = {
    # First, as in TRL: if a row has ids, its other columns are the text that the ids were made from.
    "tokenized": ("input_ids",),
    "chat": ("messages",),
    "question_answer": ("question", "answer"),
    "instruction": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "preference": ("chosen", "rejected"),
    "text": ("text",),
}
_CHAT_COLUMNS = ("system", "tools", "functions")
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "tokenized": ("labels", "attention_mask"),
    "chat": _CHAT_COLUMNS,
    "question_answer": ("system",),
    "instruction": ("input", "system"),
}
_PYTHON_TURNS = re.compile(r"\s*\[\{\s*'(?:role|from)'\s*:")
_ANSWERS = ("answer", "output", "completion")
_IGNORED = -100
_NO_PREFERENCES = ("tokenized", "text")
"""Formats whose rows have no answer that could be labelled or rejected."""
TURNS_CUT = ("LEADING_TURNS", "TRAILING_TURNS")
"""Reasons of warnings about rows that are kept without some of their turns."""


@dataclass(frozen=True)
class Example:
    """One training example: a conversation, a prompt and its completion as plain text, or token ids.

    In a conversation, the assistant turns from index `answers_from` on are trained, except those in `untrained`; in
    plain text, `completion` is trained. `instruction`, `input` and `expected_output` are for display.
    """

    row: int
    messages: list[Message] = field(default_factory=list)
    answers_from: int = 0
    prompt: str = ""
    completion: str = ""
    instruction: str = ""
    input: str = ""
    expected_output: str = ""
    untrained: frozenset[int] = frozenset()
    tools: list[dict[str, Any]] = field(default_factory=list)
    continues: bool = False
    """True for a piece of text that continues in another row: no end-of-text token is added."""
    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """Values of the row, for graders."""

    @property
    def is_chat(self) -> bool:
        return bool(self.messages)

    @property
    def is_tokenized(self) -> bool:
        return bool(self.input_ids)

    def texts(self, turns_column: str = "messages") -> Iterator[tuple[str, str]]:
        """Yields the texts that may be written for the row, each with its column; calls and tools as JSON."""
        yield "prompt", self.prompt
        yield "completion", self.completion
        for index, turn in enumerate(self.messages):
            column = f"{turns_column}[{index}]"
            yield column, turn["content"]
            yield column, turn.get("reasoning_content", "")
            if calls := turn.get("tool_calls"):
                yield column, json.dumps(calls, ensure_ascii=False)
        if self.tools:
            yield "tools", json.dumps(self.tools, ensure_ascii=False)


class RowReader:
    """Turns the rows of one dataset into examples. Without `format_`, the first row that has a known column decides the
    format."""

    def __init__(self, mapping: Mapping[str, str], system_prompt: str | None, format_: str | None = None) -> None:
        self._mapping = mapping
        self._system_prompt = system_prompt
        self._unseen = dict(mapping)
        self._columns: dict[str, None] = {}
        self._unused: set[str] = set()
        self._turns_column = "messages"
        self.format = format_ or ""
        """Name of the format; empty until a row has a known column."""

    def read(self, row: Row) -> Iterator[Example | RowProblem]:
        """Yields the warnings about a row and its example, or the problem for which it is dropped or refused. Raises
        JobError("UNSUPPORTED_FORMAT") for rows of a preference method."""
        values = self._renamed(without_padding(row.values) if row.is_padded else row.values)
        if not self.format:
            self.format = _detect(values)
        columns = {name: name for name in _REQUIRED.get(self.format, ())}
        if "messages" in columns:
            columns["messages"] = self._turns_column
        is_mapped = not self._mapping.keys().isdisjoint(columns)
        if self.format == "preference" or (self.format not in _NO_PREFERENCES and not is_mapped):
            refuse_preferences(values, self.format, columns)
        try:
            if not self.format:
                message = f"has none of the known columns (it has {_listed(row.values)}); {_hint(row.values)}"
                raise BadValue("", "UNKNOWN_FORMAT", message)
            if not is_mapped:
                refuse_media(values, columns)
            warnings = list(unused_columns(row.number, values, self.format))
            example = self._example(row, values, warnings)
            used = {*columns, *_OPTIONAL.get(self.format, ()), *(warning.column for warning in warnings)}
            if self.format == "prompt_completion" and example.is_chat:
                used.update(_CHAT_COLUMNS)
            for name in values.keys() - used:
                self._note_unused(self._mapping.get(name, name), values[name])
        except BadValue as bad:
            theirs = self._mapping.get(bad.column)
            message = bad.message
            if theirs is not None and theirs not in row.values:
                # "Name the column" would advise what the mapping already tries to do.
                has = f"has no column {theirs!r}, which the mapping names as {bad.column}"
                message = f"{has} (it has {_listed(row.values)}); correct the mapping"
            yield RowProblem(row.number, bad.column, bad.reason, message, bad.effect)
            return
        yield from warnings
        if found := self._placeholder(example):
            yield found
        yield replace(example, columns=row.values)

    def _placeholder(self, example: Example) -> RowProblem | None:
        found = (placeholder(example.row, column, text) for column, text in example.texts(self._turns_column))
        return next((problem for problem in found if problem), None)

    @property
    def columns(self) -> list[str]:
        """Columns of the rows read so far, at most 1,000."""
        return list(self._columns)

    @property
    def unseen(self) -> list[str]:
        """Keys of the mapping whose column no row had so far."""
        return list(self._unseen)

    @property
    def unused(self) -> list[str]:
        """Columns and keys of turns, such as `messages[].id`, whose values are not used; at most about 1,000."""
        return sorted(self._unused)

    def also_read(self, columns: Iterable[str], unseen: Collection[str], unused: Collection[str]) -> None:
        """Adds what another reader found in other rows of the same dataset."""
        self._note(columns)
        self._unused.update(unused)
        self._unseen = {ours: theirs for ours, theirs in self._unseen.items() if ours in unseen}

    def unseen_columns(self) -> dict[str, str]:
        """Returns the keys of the mapping whose column no row had so far, each with a message."""
        found = {}
        for ours, theirs in self._unseen.items():
            close = difflib.get_close_matches(theirs, list(self._columns), n=1)
            hint = f"Did you mean {close[0]}?" if close else f"The file has {_listed(self._columns)}."
            found[ours] = f"No row has a column {theirs!r}. {hint}"
        return found

    def unused_keys(self, graded: Collection[str] = ()) -> RowProblem | None:
        """Returns a warning that names the values of the rows that are not used, if there are any; `graded` are columns
        that graders read."""
        unused = [name for name in self.unused if name not in graded]
        if not unused:
            return None
        message = f"values that are not used: {_listed(dict.fromkeys(unused))}; correct the names if they should be"
        return RowProblem(0, "", "UNUSED_KEYS", message, "warns")

    def _renamed(self, values: dict[str, Any]) -> dict[str, Any]:
        self._note(values)
        taken = set(self._mapping.values())
        renamed = {name: value for name, value in values.items() if name not in taken}
        for ours, theirs in self._mapping.items():
            if ours in renamed:
                self._note_unused(ours, renamed.pop(ours))
            if theirs in values:
                renamed[ours] = values[theirs]
                self._unseen.pop(ours, None)
        self._turns_column = "messages"
        if "messages" not in renamed and "conversations" in renamed:
            self._turns_column = "conversations"
            renamed["messages"] = renamed.pop("conversations")
        return renamed

    def _note_unused(self, name: str, value: Any) -> None:
        if value not in NO_VALUES and len(self._unused) < 1000:
            self._unused.add(name)

    def _note(self, columns: Iterable[str]) -> None:
        if len(self._columns) < 1000:
            self._columns.update(dict.fromkeys(columns))

    def _example(self, row: Row, values: dict[str, Any], warnings: list[RowProblem]) -> Example:
        number = row.number
        match self.format:
            case "chat":
                column = self._turns_column
                messages, untrained = turns(_present(values, "messages", column), column, self._unused)
                return self._chat(number, values, messages, 0, untrained, warnings)
            case "question_answer":
                question, answer = _text(values, "question"), _text(values, "answer")
                return self._single_turn(number, values, question, "", answer)
            case "instruction":
                instruction, answer = _text(values, "instruction"), _text(values, "output")
                return self._single_turn(number, values, instruction, _optional(values, "input"), answer)
            case "prompt_completion":
                return self._prompt_completion(number, values, warnings)
            case "tokenized":
                return _tokenized(number, values)
            case _:
                text = _text(values, "text")
                return Example(number, completion=text, expected_output=text, continues=row.continues)

    def _single_turn(self, number: int, values: dict[str, Any], instruction: str, input_: str, answer: str) -> Example:
        system = _optional(values, "system")
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": f"{instruction}\n\n{input_}" if input_ else instruction})
        messages.append({"role": "assistant", "content": answer})
        return Example(
            number, self._with_system(messages), 0, instruction=instruction, input=input_, expected_output=answer
        )

    def _prompt_completion(self, number: int, values: dict[str, Any], warnings: list[RowProblem]) -> Example:
        prompt, completion = _present(values, "prompt"), _present(values, "completion")
        if isinstance(_unpacked_turns(prompt), list) or isinstance(_unpacked_turns(completion), list):
            before, _ = turns(prompt, "prompt", self._unused)
            after, untrained = turns(completion, "completion", self._unused)
            later = frozenset(len(before) + index for index in untrained)
            return self._chat(number, values, before + after, len(before), later, warnings)
        prompt, completion = _text(values, "prompt"), _text(values, "completion")
        return Example(number, prompt=prompt, completion=completion, instruction=prompt, expected_output=completion)

    def _chat(
        self,
        number: int,
        values: Mapping[str, Any],
        given: list[Message],
        answers_from: int,
        untrained: frozenset[int],
        warnings: list[RowProblem],
    ) -> Example:
        column = self._turns_column
        if joined := _num_leading_systems(given) - 1:
            given, untrained = _joined_systems(given, joined), frozenset(index - joined for index in untrained)
            answers_from -= joined
            message = f"starts with {joined + 1} system turns; joined into one, separated by blank lines"
            warnings.append(RowProblem(number, column, "JOINED_SYSTEM_TURNS", message, "warns"))
        first, end = _asked_and_answered(given, answers_from, column)
        has_system = given[0]["role"] == "system"
        if left := first - has_system:
            message = f"starts with {_turns(left)} before the first question; dropped from the row"
            warnings.append(RowProblem(number, column, "LEADING_TURNS", message, "warns"))
        if left := len(given) - end:
            message = f"ends with {_turns(left)} that the assistant does not answer; dropped from the row"
            warnings.append(RowProblem(number, column, "TRAILING_TURNS", message, "warns"))
        system = _optional(values, "system")
        if has_system and system not in ("", given[0]["content"]):
            message = "column system is not used: the conversation has its own system turn"
            warnings.append(RowProblem(number, "system", "UNUSED_SYSTEM", message, "warns"))
        own = given[:has_system]
        if not own and system:
            own = [{"role": "system", "content": system}]
        messages = self._with_system([*own, *given[first:end]])
        moved = len(messages) - end
        return Example(
            number,
            messages,
            max(answers_from + moved, 0),
            instruction=next(turn["content"] for turn in reversed(messages[:-1]) if turn["role"] == "user"),
            expected_output=messages[-1]["content"],
            untrained=frozenset(index + moved for index in untrained if first <= index < end),
            tools=tools_of(values),
        )

    def _with_system(self, messages: list[Message]) -> list[Message]:
        if self._system_prompt and messages[0]["role"] != "system":
            return [{"role": "system", "content": self._system_prompt}, *messages]
        return messages


def _unpacked_turns(value: Any) -> Any:
    """Returns the list of turns that a table holds as text; other text as it is, even if it looks like JSON."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            found = unpacked(value, "")
        except BadValue:
            # turns() then refuses the row; as plain text, the Python notation would be trained.
            return [] if _PYTHON_TURNS.match(value) else value
        if isinstance(found, list) and all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in found):
            return found
    return value


def _detect(values: Mapping[str, Any]) -> str:
    """Returns the format with the largest share of its required columns present; among equals, the first."""
    shares = {name: sum(column in values for column in columns) / len(columns) for name, columns in _REQUIRED.items()}
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] else ""


def _asked_and_answered(messages: list[Message], answers_from: int, column: str) -> tuple[int, int]:
    """Returns the index of the first question and the index after the last answer. Many templates refuse an answer
    without a question, and turns without an answer have no trained tokens."""
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        message = "has a system turn that is not the first turn; move it to the start"
        raise BadValue(column, "MISPLACED_SYSTEM", message, "leaves_out")
    if "user" not in roles:
        raise BadValue(column, "NO_QUESTION", "has no question: no turn has the role user", "leaves_out")
    first = roles.index("user")
    end = len(roles) - roles[::-1].index("assistant") if "assistant" in roles else 0
    if end <= max(first, answers_from):
        raise BadValue(column, "NO_ANSWER", "has no answer: no assistant turn follows the question", "leaves_out")
    return first, end


def _num_leading_systems(messages: list[Message]) -> int:
    """Returns the number of system turns at the start of a conversation; 1 also if there are none, since one turn or
    none needs no joining."""
    roles = (message["role"] for message in messages)
    return max(sum(1 for _ in itertools.takewhile("system".__eq__, roles)), 1)


def _joined_systems(messages: list[Message], joined: int) -> list[Message]:
    """Returns the messages with the first `joined` + 1, all system turns, joined into one: templates accept only
    one."""
    content = "\n\n".join(message["content"] for message in messages[: joined + 1])
    return [{**messages[0], "content": content}, *messages[joined + 1 :]]


def _turns(number: int) -> str:
    return "1 turn" if number == 1 else f"{number:,} turns"


def _tokenized(number: int, values: Mapping[str, Any]) -> Example:
    ids = _integers(_present(values, "input_ids"), "input_ids")
    labels = _integers(values["labels"], "labels") if values.get("labels") is not None else list(ids)
    mask = _integers(values["attention_mask"], "attention_mask") if values.get("attention_mask") is not None else []
    for column, listed in (("labels", labels), ("attention_mask", mask or ids)):
        if len(listed) != len(ids):
            message = f"column {column} has {len(listed):,} entries, input_ids has {len(ids):,}"
            raise BadValue(column, "WRONG_LENGTH", message)
    if any(entry not in (0, 1) for entry in mask):
        raise BadValue("attention_mask", "WRONG_TYPE", "column attention_mask must hold only 0 and 1")
    # The trainer adds its own padding; padding inside a row would be counted and packed like text.
    kept = [index for index, entry in enumerate(mask) if entry] if mask else range(len(ids))
    if not kept:
        raise BadValue("input_ids", "EMPTY_VALUE", "column input_ids has no tokens")
    return Example(number, input_ids=[ids[i] for i in kept], labels=[labels[i] for i in kept])


def _integers(value: Any, column: str) -> list[int]:
    listed = unpacked(value, column)
    if not isinstance(listed, list) or not all(type(entry) is int for entry in listed):
        raise BadValue(column, "WRONG_TYPE", f"column {column} must be an array of integers")
    if any(entry < 0 and not (column == "labels" and entry == _IGNORED) for entry in listed):
        raise BadValue(column, "ID_OUT_OF_RANGE", f"column {column} has a negative id")
    return listed


def _present(values: Mapping[str, Any], column: str, named: str = "") -> Any:
    """Returns the value of a required column; `named` is its name in the file, if it differs."""
    if values.get(column) is None:
        reason = "NO_ANSWER" if column in _ANSWERS else "MISSING_COLUMN"
        if column in values:
            raise BadValue(named or column, reason, f"column {named or column} is null", "leaves_out")
        hint = f"add it, or name the column that holds it with {mapping({column: 'COLUMN'})}"
        # Some JSON writers omit keys whose value is null. A row without any of the columns has another format.
        is_incomplete = any(values.get(name) is not None for name in _beside(column))
        effect: Effect = "leaves_out" if is_incomplete else "refuses"
        raise BadValue(column, reason, f"has no {column} (it has {_listed(values)}); {hint}", effect)
    return values[column]


def _beside(column: str) -> tuple[str, ...]:
    """Returns the other columns of the format that requires a column."""
    required = next(columns for columns in _REQUIRED.values() if column in columns)
    return tuple(name for name in required if name != column)


def _text(values: Mapping[str, Any], column: str) -> str:
    value = _present(values, column)
    if not isinstance(value, str):
        raise BadValue(column, "WRONG_TYPE", f"column {column} is {a(value)}; write it as a string")
    if not value.strip():
        reason = "NO_ANSWER" if column in _ANSWERS else "EMPTY_VALUE"
        raise BadValue(column, reason, f"column {column} is empty", "leaves_out")
    return encodable(value, column)


def _optional(values: Mapping[str, Any], column: str) -> str:
    value = values.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadValue(column, "WRONG_TYPE", f"column {column} is {a(value)}; write it as a string, or remove it")
    return encodable(value, column) if value.strip() else ""


def _hint(values: Mapping[str, Any]) -> str:
    lists = [name for name, value in values.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if lists:
        return f"if the rows are the array under {' or '.join(name[:40] for name in lists[:3])}, save that array alone"
    row, text = mapping({"question": "COLUMN", "answer": "COLUMN"}), mapping({"text": "COLUMN"})
    return f"map the columns that form a row, for example with {row}, or with {text} for running text"


def _listed(columns: Mapping[str, Any]) -> str:
    names = list(columns)
    return ", ".join(name[:40] for name in names[:10]) + (", …" if len(names) > 10 else "") if names else "no columns"
