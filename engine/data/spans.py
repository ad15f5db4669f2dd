"""Decides which tokens of a row are trained, for previews, training and evaluation alike.

The chat template determines the span of each answer: the text that it marks with {% generation %}; otherwise the
difference between the conversation rendered up to the answer (with the generation prompt) and rendered with it, which
is exactly the text that the model has to generate. No marker of any model is built in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy
from numpy.typing import NDArray

from engine.config.advice import setting
from engine.config.job import LossScope, Truncation
from engine.data.conversations import Message
from engine.data.formats import Example
from engine.data.rows import Effect, RowProblem
from engine.data.template_limits import ends_work
from engine.data.text_layout import NO_TURN, Layout, Piece, layout_of
from engine.data.tokenizer import Span, Tokenizer, bad_chat_template
from engine.errors import JobError

IGNORED = -100
"""Label of a token that is not trained."""

Ids = NDArray[numpy.int32]

_MANY_TURNS = 100
"""Number of turns above which the position of max_length is computed, so that truncated answers are not located."""
_MOST_REPEATED = 8
"""Maximum number of repeated control tokens that are removed from the start and end of one text."""
_LEAVES_OUT = ("TEMPLATE_FAILED", "EMPTY_VALUE")


def effect_of(error: JobError) -> Effect:
    """Returns the effect that an error of one row has on the data. A template may refuse one conversation, for example
    because of two consecutive questions, and accept the others."""
    return "leaves_out" if error.reason in _LEAVES_OUT else "refuses"


@dataclass(frozen=True)
class Tokens:
    """The token ids of a row, and its labels: the id of each trained token, -100 for the others."""

    input_ids: Ids
    labels: Ids
    truncated: bool
    too_long: bool
    """True if the row is dropped because of its length."""
    num_uncut: int
    """Number of tokens before truncation."""
    num_trained: int
    trains: bool
    """True if a trained token can be learned. The first token is never predicted, so its label does not count."""
    findings: tuple[RowProblem, ...] = ()
    """Warnings about texts that the chat template does not write, or that are not trained as the row has them."""


@dataclass(frozen=True)
class _Written:
    """The rendered text of a row and its trained spans."""

    text: str
    trained: list[Span]
    leading: list[int]
    ends: bool
    """True if the end-of-text token is appended, and trained."""
    findings: list[RowProblem] = field(default_factory=list)


def tokens_of(
    example: Example, tokenizer: Tokenizer, loss_on: LossScope, max_length: int, truncation: Truncation = "keep_start"
) -> Tokens:
    """Returns the ids and labels of a row, truncated to `max_length` tokens; with truncation "drop", a longer row is
    returned whole, with too_long set.

    Raises JobError: TEMPLATE_FAILED; TEMPLATE_EXCEEDED; TEMPLATE_NOT_INCREMENTAL if no answer can be located in the
    rendered text; TEMPLATE_WITHOUT_TOOLS if the template does not write a trained tool call or a tool's result;
    EMPTY_VALUE for a turn that has only control tokens; ID_OUT_OF_RANGE for ids that the vocabulary does not have.
    """
    (found,) = tokens_of_all([example], tokenizer, loss_on, max_length, truncation)
    if isinstance(found, JobError):
        raise found
    return found


def tokens_of_all(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    loss_on: LossScope,
    max_length: int,
    truncation: Truncation = "keep_start",
) -> list[Tokens | JobError]:
    """Returns the tokens of several rows, faster than one by one. An error that `tokens_of` would raise takes the place
    of its row, except TEMPLATE_EXCEEDED and LimitExceeded, which are raised: every other row would take as long."""
    found: list[Tokens | JobError | None] = []
    written: list[_Written] = []
    for example in examples:
        try:
            if example.is_tokenized:
                found.append(_cut(*_tokenized(example, tokenizer, loss_on), max_length, truncation))
            else:
                if example.is_chat:
                    cleaned = without_repeated_tokens(example, tokenizer)
                    written.append(_conversation(cleaned, tokenizer, loss_on, max_length))
                else:
                    written.append(_plain_text(example, tokenizer, loss_on))
                found.append(None)
        except JobError as error:
            if ends_work(error):
                raise
            found.append(error)
    encoded = tokenizer.encode_all([one.text for one in written])
    labels = numpy.where(encoded.within([one.trained for one in written]), encoded.ids, numpy.int32(IGNORED))
    made = iter(
        replace(
            _cut(*_ended(one, encoded.ids[start:end], labels[start:end], tokenizer), max_length, truncation),
            findings=tuple(one.findings),
        )
        for one, (start, end) in zip(written, pairwise(encoded.starts), strict=True)
    )
    return [next(made) if one is None else one for one in found]


def _cut(ids: Ids, labels: Ids, max_length: int, truncation: Truncation) -> Tokens:
    too_long = len(ids) > max_length
    kept = slice(None)
    if too_long and truncation != "drop":
        kept = slice(-max_length, None) if truncation == "keep_end" else slice(max_length)
    labels = labels[kept]
    num_trained = int(numpy.count_nonzero(labels != IGNORED))
    trains = num_trained > int(len(labels) > 0 and labels[0] != IGNORED)
    dropped = too_long and truncation == "drop"
    return Tokens(ids[kept], labels, too_long and not dropped, dropped, len(ids), num_trained, trains)


def _ended(row: _Written, ids: Ids, labels: Ids, tokenizer: Tokenizer) -> tuple[Ids, Ids]:
    """Returns the ids and labels with the begin-of-text and end-of-text tokens added."""
    end = [tokenizer.eos_id] if row.ends else []
    if not end and not row.leading:
        return ids, labels
    # The begin-of-text token is part of every prompt; the model never generates it.
    return _joined(row.leading, ids, end), _joined([IGNORED] * len(row.leading), labels, end)


def _joined(before: list[int], middle: Ids, behind: list[int]) -> Ids:
    return numpy.concatenate([numpy.array(before, numpy.int32), middle, numpy.array(behind, numpy.int32)])


def whole_text(example: Example, tokenizer: Tokenizer) -> str:
    """Returns the text of a row's ids before truncation, including begin-of-text and end-of-text tokens."""
    if example.is_tokenized:
        return tokenizer.decode(example.input_ids)
    if example.is_chat:
        example = without_repeated_tokens(example, tokenizer)
        text = tokenizer.render(example.messages, tools=example.tools)
        return text if tokenizer.ends_special(text) else text + tokenizer.decode([tokenizer.eos_id])
    text = example.prompt + example.completion
    end = [] if example.continues or _has_end(text, tokenizer) else [tokenizer.eos_id]
    return tokenizer.decode(_leading(text, tokenizer)) + text + tokenizer.decode(end)


def prompt_text(example: Example, tokenizer: Tokenizer) -> str:
    """Returns the prompt of a row: its text without the last answer.

    For plain text, which has no question, it is the first half of its tokens.
    """
    if example.is_chat:
        return tokenizer.render(example.messages[:-1], generation_prompt=True, tools=example.tools)
    if example.is_tokenized:
        return tokenizer.decode(example.input_ids[: _prompt_length(example)])
    if example.prompt:
        return example.prompt
    encoding = tokenizer.encode(example.completion)
    half = len(encoding.ids) // 2
    return example.completion[: encoding.offsets[half][0]] if half else ""


def _prompt_length(example: Example) -> int:
    """Returns the number of tokens before the first trained one; half of the tokens if all are trained."""
    trained = next((index for index, label in enumerate(example.labels) if label != IGNORED), 0)
    return trained or len(example.input_ids) // 2


def _tokenized(example: Example, tokenizer: Tokenizer, loss_on: LossScope) -> tuple[Ids, Ids]:
    largest = max(*example.input_ids, *example.labels, 0)
    if largest >= tokenizer.num_ids:
        raise JobError(
            "ID_OUT_OF_RANGE",
            f"The row has id {largest:,}; the base model's vocabulary ends at {tokenizer.num_ids - 1:,}.",
            "Tokenise the rows with the base model's own tokenizer, or upload them as text.",
        )
    ids = numpy.array(example.input_ids, numpy.int32)
    return ids, ids if loss_on == "all" else numpy.array(example.labels, numpy.int32)


def _conversation(example: Example, tokenizer: Tokenizer, loss_on: LossScope, max_length: int) -> _Written:
    marked: list[Span] = []
    if loss_on != "all" and tokenizer.marks_answers:
        text, marked = tokenizer.render_marked(example.messages, example.tools)
    else:
        text = tokenizer.render(example.messages, tools=example.tools)
    _check(text)
    answers = _Answers(example, tokenizer, text)
    findings = list(_unwritten(example, answers, loss_on))
    # Generation ends only at a special token: without one at the end, the model would never learn to stop.
    ends = not tokenizer.ends_special(text)
    if loss_on == "all":
        return _Written(text, [(0, len(text))], [], ends, findings)
    if (spans := answers.marked(marked, findings)) is None:
        kept = None
        if len(example.messages) > _MANY_TURNS:
            offsets = tokenizer.encode(text).offsets
            kept = offsets[max_length - 1][1] if len(offsets) > max_length else None
        spans = answers.spans(kept, findings)
    return _Written(text, spans, [], ends, findings)


def _check(text: str) -> None:
    if not text.strip():
        raise bad_chat_template("TEMPLATE_FAILED", "The chat template writes nothing for this conversation.")


class _Answers:
    """Locates the answers of one conversation in its rendered text."""

    def __init__(self, example: Example, tokenizer: Tokenizer, text: str) -> None:
        self._example, self._tokenizer, self.text = example, tokenizer, text
        self._messages = example.messages
        self.layout = self._layout(len(self._messages), text)

    def is_empty(self, index: int) -> bool:
        """Returns True if the template writes neither the content nor a call of the turn."""
        return self.layout is not None and not any(self.layout.of_turn(index, kind) for kind in ("content", "call"))

    def without_names(self) -> str:
        """Returns the rendered text of the conversation without the names of its turns."""
        unnamed = [{key: value for key, value in message.items() if key != "name"} for message in self._messages]
        return self._tokenizer.render(unnamed, tools=self._example.tools)

    def spans(self, kept: int | None, findings: list[RowProblem]) -> list[Span]:
        """Returns the spans of the trained answers, each including the token that ends its turn. Answers that start
        after `kept` characters are skipped: each answer takes two renderings of all turns before it, which is quadratic
        in the number of turns."""
        found: list[Span] = []
        rewritten: list[int] = []
        unknown: list[int] = []
        for index in _trained_turns(self._example):
            before = self._tokenizer.render(self._messages[:index], generation_prompt=True, tools=self._example.tools)
            if kept is not None and len(before) >= kept:
                break
            span, is_rewritten = self._span(index, before)
            if span is None:
                unknown.append(index)
                continue
            if is_rewritten:
                rewritten.append(index)
            found.append(span)
        if unknown and not found:
            raise _not_incremental(unknown[0], self._messages)
        if unknown:
            findings.append(_answers_not_trained(self._example.row, unknown, self._messages))
        if rewritten:
            findings.append(_answers_rewritten(self._example.row, rewritten, self._messages))
        return found

    def marked(self, marked: list[Span], findings: list[RowProblem]) -> list[Span] | None:
        """Returns the trained answers among the spans that the template marks, each extended to the end of its turn;
        None if the marked spans do not match the answers one to one."""
        answers = [index for index, message in enumerate(self._messages) if message["role"] == "assistant"]
        if len(marked) != len(answers):
            return None
        wanted = set(_trained_turns(self._example))
        spans: list[Span] = []
        for index, (start, end) in zip(answers, marked, strict=True):
            own = [span for found in self._own(index) for span in found]
            if any(first < start or last > end for first, last in own) or not self.text[start:end].strip():
                return None
            if index not in wanted:
                continue
            spans.append((start, self._end_of_turn(index, start, end, findings)))
        return spans

    def _own(self, index: int) -> list[list[Span]]:
        return list(self.layout.of_turn(index).values()) if self.layout else []

    def _end_of_turn(self, index: int, start: int, end: int, findings: list[RowProblem]) -> int:
        """Returns the end of a marked answer. Some templates mark the answer without the token that ends its turn; a
        model trained on such spans would never stop."""
        written = self.text[start:end].rstrip()
        # A control token at the end of the answer's own text was not written by the template.
        if not written.endswith(self._messages[index]["content"].rstrip() or "\n") and self._tokenizer.ends_special(
            written
        ):
            return end
        before = self._tokenizer.render(self._messages[:index], generation_prompt=True, tools=self._example.tools)
        span, _ = self._span(index, before)
        if span is not None and start < span[1]:
            return max(span[1], end)
        if index + 1 < len(self._messages) or self._tokenizer.ends_special(self.text):
            findings.append(_end_not_trained(self._example.row, index, self._messages))
        return end

    def _span(self, index: int, before: str) -> tuple[Span | None, bool]:
        """Returns the span of an answer in the whole rendered text, and True if it is written there differently than
        when it is the last turn. The span is None if the answer cannot be located."""
        message = self._messages[index]
        is_last = index + 1 == len(self._messages)
        through = (
            self.text if is_last else self._tokenizer.render(self._messages[: index + 1], tools=self._example.tools)
        )
        if through.startswith(before):
            end = len(before) + _length_of_turn(through[len(before) :], message)
            if self.text[:end] == through[:end]:
                return (len(before), end), False
        return self._in_whole(index, before, through), True

    def _in_whole(self, index: int, before: str, through: str) -> Span | None:
        """Returns the span of an answer in the whole rendered text, from the generation prompt to the token that ends
        the turn."""
        alone = self._layout(index + 1, through)
        if self.layout is None or alone is None:
            return None
        own, then = self.layout.of_turn(index), alone.of_turn(index)
        # An answer whose reasoning is removed when other turns follow is a different answer.
        if not own or own.keys() != then.keys() or any(len(spans) != 1 for spans in own.values()):
            return None
        asked = self._tokenizer.render(self._messages[:index], tools=self._example.tools)
        prompt = before[len(asked) :] if before.startswith(asked) else ""
        first = min(start for ((start, _),) in own.values())
        last = max(end for ((_, end),) in own.values())
        at = self.text.rfind(prompt, self.layout.end_before(index, first), first) if prompt else -1
        closing = through[max(end for spans in then.values() for _, end in spans) :].rstrip()
        if at < 0 or not self.text.startswith(closing, last):
            return None
        return at + len(prompt), last + len(closing)

    def _layout(self, num_turns: int, text: str) -> Layout | None:
        def render(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> str:
            return self._tokenizer.render(messages, tools=tools)

        try:
            return layout_of(render, self._messages[:num_turns], self._example.tools, text, self._tokenizer.template)
        except JobError as error:
            # A template may refuse the marks, for example if it parses a text.
            if ends_work(error):
                raise
            return None


def _trained_turns(example: Example) -> list[int]:
    return [
        index
        for index, message in enumerate(example.messages)
        if message["role"] == "assistant" and index >= example.answers_from and index not in example.untrained
    ]


def _length_of_turn(written: str, message: Message) -> int:
    """Returns the length of an answer in the text that the template writes for its turn: up to the token that ends the
    turn, without the whitespace after it."""
    stripped = written.rstrip()
    content = message["content"].rstrip()
    if content and stripped.endswith(content):
        return len(written)
    return len(stripped)


def _unwritten(example: Example, answers: _Answers, loss_on: LossScope) -> Iterator[RowProblem]:
    """Yields a warning for each kind of text that the template does not write. Raises JobError TEMPLATE_WITHOUT_TOOLS
    if that text is a trained tool call or a tool's result: the model would learn to invent the result."""
    messages = example.messages
    trained = set(range(len(messages)) if loss_on == "all" else _trained_turns(example))
    lost: dict[str, int] = {}
    for piece in _missing(example, answers):
        role = messages[piece.turn]["role"] if piece.turn != NO_TURN else ""
        if piece.kind == "call" and piece.turn in trained:
            raise _without_tools(piece.turn, messages, "calls a tool", "answer nothing")
        if role == "tool":
            raise _without_tools(piece.turn, messages, "is a tool's result", "invent the result")
        if piece.kind == "content" and piece.turn in trained and answers.is_empty(piece.turn):
            message = f"The chat template writes nothing of the answer in turn {piece.turn + 1} of {len(messages)}."
            raise bad_chat_template("TEMPLATE_FAILED", message)
        if piece.kind == "tool":
            reason = "TOOLS_NOT_WRITTEN"
        elif piece.kind == "thought":
            reason = "THOUGHT_NOT_WRITTEN"
        else:
            reason = "SYSTEM_NOT_WRITTEN" if role == "system" else "TURN_NOT_WRITTEN"
        lost.setdefault(reason, piece.turn)
    # The name of a tool's result repeats the name in the call.
    named = [index for index, message in enumerate(messages) if "name" in message and message["role"] != "tool"]
    if named and answers.text == answers.without_names():
        reason = "NAME_NOT_WRITTEN"
        lost[reason] = named[0]
    for reason, turn in lost.items():
        said, advice = _NOT_WRITTEN[reason]
        where = "" if turn == NO_TURN else f" (turn {turn + 1} of {len(messages)})"
        message = f"has {said}{where} that the chat template does not write; {advice}"
        yield RowProblem(example.row, "", reason, message, "warns")


def _missing(example: Example, answers: _Answers) -> Iterator[Piece]:
    if answers.layout is not None:
        yield from answers.layout.missing()
        return
    # The template writes marked texts differently, so only the presence of each text can be checked.
    text = answers.text
    for index, message in enumerate(example.messages):
        if message["content"].strip() not in text:
            yield Piece(index, "content")
        if message.get("reasoning_content", "").strip() not in text:
            yield Piece(index, "thought")
        if any(call["function"]["name"] not in text for call in message.get("tool_calls", ())):
            yield Piece(index, "call")
    names = [(tool.get("function") or tool).get("name", "") for tool in example.tools]
    if any(str(name) not in text for name in names):
        yield Piece(NO_TURN, "tool")


_WRITES = "set a chat_template that writes it, or remove it from the row"
_NOT_WRITTEN = {
    "SYSTEM_NOT_WRITTEN": (
        "a system text",
        "move it into the first question, or set a chat_template that writes system turns",
    ),
    "TOOLS_NOT_WRITTEN": ("a list of tools", _WRITES),
    "THOUGHT_NOT_WRITTEN": ("reasoning", "set a chat_template that writes it, or move it into the answer's content"),
    "TURN_NOT_WRITTEN": ("a text", _WRITES),
    "NAME_NOT_WRITTEN": ("a name", _WRITES),
}
"""Per reason, the name of the text that the template does not write, and the remedy."""


def _plain_text(example: Example, tokenizer: Tokenizer, loss_on: LossScope) -> _Written:
    text = example.prompt + example.completion
    trained_from = 0 if loss_on == "all" else len(example.prompt)
    # Text prepared for another trainer often contains begin and end tokens already; they are not added twice.
    leading = _leading(text, tokenizer)
    ends = not example.continues and not _has_end(text, tokenizer)
    return _Written(text, [(trained_from, len(text))], leading, ends)


def _leading(text: str, tokenizer: Tokenizer) -> list[int]:
    has_begin = bool(tokenizer.leading_ids) and text.startswith(tokenizer.decode(tokenizer.leading_ids))
    return [] if has_begin else tokenizer.leading_ids


def _has_end(text: str, tokenizer: Tokenizer) -> bool:
    return text.rstrip().endswith(tokenizer.eos_token)


def without_repeated_tokens(example: Example, tokenizer: Tokenizer) -> Example:
    """Returns the example without the control tokens at the start or end of a turn's text that the chat template also
    writes there.

    Raises JobError EMPTY_VALUE if a question or an answer has no other text.
    """
    messages = example.messages
    for _ in range(_MOST_REPEATED):
        if not any(_outer_tokens(message["content"], tokenizer) for message in messages):
            return example if messages is example.messages else replace(example, messages=messages)
        cleaned = _once_less_repeated(messages, example, tokenizer)
        if cleaned == messages:
            break
        messages = cleaned
    return example if messages is example.messages else replace(example, messages=messages)


def _once_less_repeated(messages: list[Message], example: Example, tokenizer: Tokenizer) -> list[Message]:
    answers = _Answers(replace(example, messages=messages), tokenizer, tokenizer.render(messages, tools=example.tools))
    if answers.layout is None:
        return messages
    cleaned = []
    for index, message in enumerate(messages):
        content = message["content"]
        found = [span for spans in answers.layout.of_turn(index, "content").values() for span in spans]
        if not found or not (tokens := _outer_tokens(content, tokenizer)):
            cleaned.append(message)
            continue
        first, last = tokens
        begin, end = min(start for start, _ in found), max(end for _, end in found)
        before, own, behind = answers.text[:begin], answers.text[begin:end], answers.text[end:]
        # Marks are not placed next to tags, so the turn's own tokens may lie outside the marked span.
        if last and _repeats(behind, last) + _repeats(own[::-1], last[::-1]) > _repeats(content[::-1], last[::-1]):
            content = content.rstrip().removesuffix(last).rstrip()
        elif first and _repeats(before[::-1], first[::-1]) + _repeats(own, first) > _repeats(content, first):
            content = content.lstrip().removeprefix(first).lstrip()
        if not content and not message.get("tool_calls") and message["role"] in ("user", "assistant"):
            raise JobError(
                "EMPTY_VALUE",
                f"Turn {index + 1} of {len(messages)} has only control tokens.",
                "Drop the row, or give the turn a text.",
            )
        cleaned.append(message if content == message["content"] else {**message, "content": content})
    return cleaned


def _outer_tokens(content: str, tokenizer: Tokenizer) -> tuple[str, str] | None:
    """Returns the control tokens at the start and at the end of the text, empty if absent; None if both are absent."""
    stripped = content.strip()
    first = next((token for token in tokenizer.special_texts if stripped.startswith(token)), "")
    last = next((token for token in tokenizer.special_texts if stripped.endswith(token)), "")
    return (first, last) if first or last else None


def _repeats(text: str, token: str) -> int:
    """Returns how many times the text starts with the token, without regard to whitespace."""
    # By position: copying the rest of the text for each token would take quadratic time.
    count = start = 0
    while True:
        while text[start : start + 1].isspace():
            start += 1
        if not text.startswith(token, start):
            return count
        start += len(token)
        count += 1


def _without_tools(index: int, messages: list[Message], what: str, learned: str) -> JobError:
    return JobError(
        "TEMPLATE_WITHOUT_TOOLS",
        f"Turn {index + 1} of {len(messages)} {what}, but the chat template does not write it; the model would learn "
        f"to {learned}.",
        "Set a chat_template that writes tool calls and their results, or choose a base model whose own template does.",
    )


def _named(turns: list[int], messages: list[Message]) -> str:
    shown = ", ".join(str(turn + 1) for turn in turns[:5]) + (", …" if len(turns) > 5 else "")
    return f"turn{'s' if len(turns) > 1 else ''} {shown} of {len(messages)}"


def _answers_not_trained(row: int, turns: list[int], messages: list[Message]) -> RowProblem:
    message = (
        f"has answers that are not trained ({_named(turns, messages)}): the chat template writes them differently when "
        "other turns follow; split the conversation into rows of one answer each to train them"
    )
    return RowProblem(row, "", "ANSWERS_NOT_TRAINED", message, "warns")


def _answers_rewritten(row: int, turns: list[int], messages: list[Message]) -> RowProblem:
    message = (
        f"has answers that the chat template writes differently when other turns follow ({_named(turns, messages)}); "
        "they are trained as in the whole conversation; split the conversation into rows of one answer each to train "
        "them as the model would generate them"
    )
    return RowProblem(row, "", "ANSWERS_REWRITTEN", message, "warns")


def _end_not_trained(row: int, index: int, messages: list[Message]) -> RowProblem:
    message = (
        f"has an answer whose end is not trained ({_named([index], messages)}): the chat template marks the answer "
        "without the token that ends its turn; move {% endgeneration %} after that token"
    )
    return RowProblem(row, "", "END_NOT_TRAINED", message, "warns")


def _not_incremental(index: int, messages: list[Message]) -> JobError:
    turns = f"turn {index + 1} of {len(messages)}"
    return JobError(
        "TEMPLATE_NOT_INCREMENTAL",
        f"The chat template writes the conversation up to the answer in {turns} differently than the start of the "
        "whole conversation, so the answer cannot be located.",
        "Set a chat_template that writes each turn the same whatever follows it, split the conversations into rows "
        f"of one answer each, or set {setting('hyperparameters.loss_on', 'all')}.",
    )
