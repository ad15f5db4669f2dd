"""What a row means: from the columns of seven formats to one example.

| format            | columns                                                   | becomes                           |
|-------------------|-----------------------------------------------------------|-----------------------------------|
| tokenized         | `input_ids`, `labels`?, `attention_mask`?                 | itself                            |
| chat              | `messages` or `conversations` (role/content, from/value), | a conversation                    |
|                   | `tools`?, `system`?                                       |                                   |
| question_answer   | `question`, `answer`, `system`?                           | a conversation of one turn each   |
| instruction       | `instruction`, `input`?, `output`, `system`?              | the same, input after instruction |
| prompt_completion | `prompt`, `completion`: both text, or both lists of turns | plain text, or a conversation     |
| preference        | `chosen`, `rejected`, `prompt`?                           | refused: which one is the answer? |
| text              | `text`                                                    | plain text, trained as a whole    |

Every assistant turn of a conversation is trained but those with `"train": false` or `"weight": 0`. What stands before
the first question of a conversation, or behind its last answer, is left out with a warning.
"""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.data.conversations import BadValue, Message, a, encodable, tools, turns, unpacked
from engine.data.rows import Row, RowProblem
from engine.errors import JobError

_REQUIRED: dict[str, tuple[str, ...]] = {
    # First, as in the Trainer: where there are ids, the other columns are what they were made of.
    "tokenized": ("input_ids",),
    "chat": ("messages",),
    "question_answer": ("question", "answer"),
    "instruction": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "preference": ("chosen", "rejected"),
    "text": ("text",),
}
_ANSWERS = ("answer", "output", "completion")
_IGNORED = -100
TURNS_CUT = ("LEADING_TURNS", "TRAILING_TURNS")
"""Reasons of problems that leave the row in."""


@dataclass(frozen=True)
class Example:
    """One row as it is trained on: a conversation, a prompt and its continuation as plain text, or ids.

    Of a conversation the assistant turns from index `answers_from` on are trained, but those in `untrained`; of plain
    text, `completion`. instruction, input and expected_output are what a person compares an answer with.
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
    """True for a piece of text that goes on in another row: no end is learned."""
    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    @property
    def is_chat(self) -> bool:
        return bool(self.messages)

    @property
    def is_tokenized(self) -> bool:
        return bool(self.input_ids)


class RowReader:
    """Turns the rows of one dataset into examples. Unless `format_` says it, the first row that has a known column
    decides the format."""

    def __init__(self, mapping: Mapping[str, str], system_prompt: str | None, format_: str | None = None) -> None:
        self._mapping = mapping
        self._system_prompt = system_prompt
        self._unseen = dict(mapping)
        self._columns: dict[str, None] = {}
        self._turns_column = "messages"
        self.format = format_ or ""
        """Name of the format; empty before the first row that has one."""

    def read(self, row: Row) -> Iterator[Example | RowProblem]:
        """The example a row makes, behind what had to be mended of it; or what is wrong with the row. Raises
        JobError("UNSUPPORTED_FORMAT") for preference pairs."""
        values = self._renamed(row.values)
        if not self.format:
            self.format = _detect(values)
        if self.format == "preference":
            raise JobError(
                "UNSUPPORTED_FORMAT",
                "The rows are preference pairs (chosen and rejected): supervised training learns one answer, not which "
                "of two is the better one.",
                'To learn the chosen ones, map them: completion = "chosen" beside prompt, or messages = "chosen".',
            )
        try:
            if not self.format:
                message = f"has none of the known columns; it has {_listed(row.values)}; {_hint(row.values)}"
                raise BadValue("", "UNKNOWN_FORMAT", message)
            mended: list[RowProblem] = []
            example = self._example(row, values, mended)
        except BadValue as bad:
            yield RowProblem(row.number, bad.column, bad.reason, bad.message, bad.effect)
            return
        yield from mended
        yield example

    @property
    def columns(self) -> list[str]:
        """Columns of the rows so far, the first thousand."""
        return list(self._columns)

    @property
    def unseen(self) -> list[str]:
        """Mapped columns, by our names, that no row had so far."""
        return list(self._unseen)

    def also_read(self, columns: Iterable[str], unseen: Collection[str]) -> None:
        """Takes over what another reader, of other rows of the same dataset, has seen."""
        self._note(columns)
        self._unseen = {ours: theirs for ours, theirs in self._unseen.items() if ours in unseen}

    def unseen_columns(self) -> dict[str, str]:
        """Entries of the mapping whose column no row had so far, each with what is wrong about it."""
        found = {}
        for ours, theirs in self._unseen.items():
            close = difflib.get_close_matches(theirs, list(self._columns), n=1)
            hint = f"Did you mean {close[0]}?" if close else f"The file has {_listed(self._columns)}."
            found[ours] = f"No row has a column {theirs!r}. {hint}"
        return found

    def _renamed(self, values: dict[str, Any]) -> dict[str, Any]:
        self._note(values)
        taken = set(self._mapping.values())
        renamed = {name: value for name, value in values.items() if name not in taken}
        for ours, theirs in self._mapping.items():
            renamed.pop(ours, None)
            if theirs in values:
                renamed[ours] = values[theirs]
                self._unseen.pop(ours, None)
        self._turns_column = "messages"
        if "messages" not in renamed and "conversations" in renamed:
            self._turns_column = "conversations"
            renamed["messages"] = renamed.pop("conversations")
        return renamed

    def _note(self, columns: Iterable[str]) -> None:
        if len(self._columns) < 1000:
            self._columns.update(dict.fromkeys(columns))

    def _example(self, row: Row, values: dict[str, Any], mended: list[RowProblem]) -> Example:
        number = row.number
        match self.format:
            case "chat":
                column = self._turns_column
                messages, untrained = turns(_present(values, "messages", column), column)
                return self._chat(number, values, messages, 0, untrained, mended)
            case "question_answer":
                question, answer = _text(values, "question"), _text(values, "answer")
                return self._single_turn(number, values, question, "", answer)
            case "instruction":
                instruction, answer = _text(values, "instruction"), _text(values, "output")
                return self._single_turn(number, values, instruction, _optional(values, "input"), answer)
            case "prompt_completion":
                return self._prompt_completion(number, values, mended)
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

    def _prompt_completion(self, number: int, values: dict[str, Any], mended: list[RowProblem]) -> Example:
        prompt, completion = _present(values, "prompt"), _present(values, "completion")
        if isinstance(_unpacked_turns(prompt), list) or isinstance(_unpacked_turns(completion), list):
            before, _ = turns(prompt, "prompt")
            after, untrained = turns(completion, "completion")
            later = frozenset(len(before) + index for index in untrained)
            return self._chat(number, values, before + after, len(before), later, mended)
        prompt, completion = _text(values, "prompt"), _text(values, "completion")
        return Example(number, prompt=prompt, completion=completion, instruction=prompt, expected_output=completion)

    def _chat(
        self,
        number: int,
        values: Mapping[str, Any],
        given: list[Message],
        answers_from: int,
        untrained: frozenset[int],
        mended: list[RowProblem],
    ) -> Example:
        column = self._turns_column
        first, end = _asked_and_answered(given, answers_from, column)
        has_system = given[0]["role"] == "system"
        if left := first - has_system:
            message = f"begins with {_turns(left)} before anybody asks; left out of the row"
            mended.append(RowProblem(number, column, "LEADING_TURNS", message, "warns"))
        if left := len(given) - end:
            message = f"ends with {_turns(left)} that the assistant does not answer; left out of the row"
            mended.append(RowProblem(number, column, "TRAILING_TURNS", message, "warns"))
        own = given[:has_system]
        if not own and (system := _optional(values, "system")):
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
            tools=tools(values.get("tools")),
        )

    def _with_system(self, messages: list[Message]) -> list[Message]:
        if self._system_prompt and messages[0]["role"] != "system":
            return [{"role": "system", "content": self._system_prompt}, *messages]
        return messages


def _unpacked_turns(value: Any) -> Any:
    """A list of turns that a table holds as text; any other text is itself, even where it looks like JSON."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            found = unpacked(value, "")
        except BadValue:
            return value
        if isinstance(found, list) and all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in found):
            return found
    return value


def _detect(values: Mapping[str, Any]) -> str:
    """The format most of whose required columns are there; the order of the formats decides between equals."""
    shares = {name: sum(column in values for column in columns) / len(columns) for name, columns in _REQUIRED.items()}
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] else ""


def _asked_and_answered(messages: list[Message], answers_from: int, column: str) -> tuple[int, int]:
    """Index of the first question, and behind the last answer. An answer that nobody asked for cannot be learned as
    one (many templates refuse it), and of turns that nobody answers nothing is trained."""
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        message = "has a system turn that is not the first; move it to the front"
        raise BadValue(column, "MISPLACED_SYSTEM", message, "leaves_out")
    if "user" not in roles:
        raise BadValue(column, "NO_QUESTION", "has no question: none of its turns is the user's", "leaves_out")
    first = roles.index("user")
    end = len(roles) - roles[::-1].index("assistant") if "assistant" in roles else 0
    if end <= max(first, answers_from):
        raise BadValue(column, "NO_ANSWER", "has no answer: no turn of the assistant's follows", "leaves_out")
    return first, end


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
        raise BadValue("attention_mask", "WRONG_TYPE", "column attention_mask must be of 0 and 1")
    # Padding is the trainer's: a padded row would be counted and packed as if it were text.
    kept = [index for index, entry in enumerate(mask) if entry] if mask else range(len(ids))
    if not kept:
        raise BadValue("input_ids", "EMPTY_VALUE", "column input_ids has no tokens; drop the row")
    return Example(number, input_ids=[ids[i] for i in kept], labels=[labels[i] for i in kept])


def _integers(value: Any, column: str) -> list[int]:
    listed = unpacked(value, column)
    if not isinstance(listed, list) or not all(type(entry) is int for entry in listed):
        raise BadValue(column, "WRONG_TYPE", f"column {column} must be an array of whole numbers")
    if any(entry < 0 and not (column == "labels" and entry == _IGNORED) for entry in listed):
        raise BadValue(column, "ID_OUT_OF_RANGE", f"column {column} has a negative id")
    return listed


def _present(values: Mapping[str, Any], column: str, named: str = "") -> Any:
    """The value of a column, which the file calls `named` where that is another name."""
    if values.get(column) is None:
        reason = "NO_ANSWER" if column in _ANSWERS else "MISSING_COLUMN"
        if column in values:
            raise BadValue(named or column, reason, f"column {named or column} is null", "leaves_out")
        hint = f'add it, or name the column that holds it with mapping: {column} = "…"'
        raise BadValue(column, reason, f"has no {column} (it has {_listed(values)}); {hint}")
    return values[column]


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
        raise BadValue(column, "WRONG_TYPE", f"column {column} is {a(value)}; write it as a string, or leave it out")
    return encodable(value, column) if value.strip() else ""


def _hint(values: Mapping[str, Any]) -> str:
    lists = [name for name, value in values.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if lists:
        return f"if its rows are the array under {' or '.join(name[:40] for name in lists[:3])}, save that alone"
    return 'say with mapping which column holds what, such as question = "…" and answer = "…"'


def _listed(columns: Mapping[str, Any]) -> str:
    names = list(columns)
    return ", ".join(name[:40] for name in names[:10]) + (", …" if len(names) > 10 else "") if names else "no columns"
