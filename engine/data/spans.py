"""Which tokens of a row are trained: the one place that decides it, for previews, training and evaluation alike.

The chat template itself says where an answer is: what it marks with {% generation %}; else the conversation rendered up
to an answer (with the generation prompt) and rendered with it differ by exactly what the model has to write. No marker
of any model is built in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy
from numpy.typing import NDArray

from engine.config.job import LossScope, Truncation
from engine.data.conversations import Message
from engine.data.formats import Example
from engine.data.template_limits import TEMPLATE_EXCEEDED
from engine.data.tokenizer import Span, Tokenizer, bad_chat_template
from engine.errors import JobError

IGNORED = -100
"""Label of a token that is not trained."""

Ids = NDArray[numpy.int32]


_MANY_TURNS = 100
"""From so many on it pays to know which of them max_length leaves."""


@dataclass(frozen=True)
class Tokens:
    """A row as training sees it: ids, and per token its id where it is trained, else -100."""

    input_ids: Ids
    labels: Ids
    truncated: bool
    too_long: bool
    """To be dropped for its length."""
    num_uncut: int
    """Tokens before truncation."""

    num_trained: int
    trains: bool
    """Whether there is anything to learn. The first token is given, never predicted: a label there is in vain."""


@dataclass(frozen=True)
class _Written:
    """A row as text, before it is ids."""

    text: str
    trained: list[Span]
    leading: list[int]
    ends: bool
    """Whether the end-of-text token follows, and is trained."""


def tokens_of(
    example: Example, tokenizer: Tokenizer, loss_on: LossScope, max_length: int, truncation: Truncation = "keep_start"
) -> Tokens:
    """Ids and labels of a row, cut to `max_length` tokens; with truncation "drop" a longer row is whole, and too_long.

    Raises JobError: TEMPLATE_FAILED, TEMPLATE_EXCEEDED, TEMPLATE_NOT_INCREMENTAL when the template gives no way to tell
    answers apart, TEMPLATE_WITHOUT_TOOLS when it leaves out what an assistant turn calls, ID_OUT_OF_RANGE for ids that
    the vocabulary does not have.
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
    """The same of several rows, which costs less than one by one. What `tokens_of` raises stands in a row's place, but
    for TEMPLATE_EXCEEDED: each row would take as long."""
    found: list[Tokens | JobError | None] = []
    written: list[_Written] = []
    for example in examples:
        try:
            if example.is_tokenized:
                found.append(_cut(*_tokenized(example, tokenizer, loss_on), max_length, truncation))
            else:
                if example.is_chat:
                    written.append(_conversation(example, tokenizer, loss_on, max_length))
                else:
                    written.append(_plain_text(example, tokenizer, loss_on))
                found.append(None)
        except JobError as error:
            if error.reason == TEMPLATE_EXCEEDED:
                raise
            found.append(error)
    encoded = tokenizer.encode_all([one.text for one in written])
    labels = numpy.where(encoded.within([one.trained for one in written]), encoded.ids, numpy.int32(IGNORED))
    made = iter(
        _cut(*_ended(one, encoded.ids[start:end], labels[start:end], tokenizer), max_length, truncation)
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
    """With what comes before and behind the text."""
    end = [tokenizer.eos_id] if row.ends else []
    if not end and not row.leading:
        return ids, labels
    # The begin-of-text token is given, never written by the model.
    return _joined(row.leading, ids, end), _joined([IGNORED] * len(row.leading), labels, end)


def _joined(before: list[int], middle: Ids, behind: list[int]) -> Ids:
    return numpy.concatenate([numpy.array(before, numpy.int32), middle, numpy.array(behind, numpy.int32)])


def whole_text(example: Example, tokenizer: Tokenizer) -> str:
    """What the ids of a row say, before it is cut: with the tokens before and behind what is written."""
    if example.is_tokenized:
        return tokenizer.decode(example.input_ids)
    if example.is_chat:
        text = tokenizer.render(example.messages, tools=example.tools)
        return text if tokenizer.ends_special(text) else text + tokenizer.decode([tokenizer.eos_id])
    end = [] if example.continues else [tokenizer.eos_id]
    return tokenizer.decode(tokenizer.leading_ids) + example.prompt + example.completion + tokenizer.decode(end)


def prompt_text(example: Example, tokenizer: Tokenizer) -> str:
    """What the model is given before it answers: all of the row but its last answer.

    Of a text row, which has no question, it is the first half of its tokens.
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
    """Tokens before the first that is trained; half of them where all are."""
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
    if loss_on != "all" and tokenizer.marks_answers:
        text, marked = tokenizer.render_marked(example.messages, example.tools)
        _check(text)
        if (spans := _chosen(example, text, marked)) is not None:
            return _Written(text, spans, [], not tokenizer.ends_special(text))
    text = tokenizer.render(example.messages, tools=example.tools)
    _check(text)
    kept = None
    if len(example.messages) > _MANY_TURNS:
        offsets = tokenizer.encode(text).offsets
        kept = offsets[max_length - 1][1] if len(offsets) > max_length else None
    spans = [(0, len(text))] if loss_on == "all" else _answers(example, tokenizer, text, kept)
    # Generation ends at a special token only: a template that writes none would teach the model never to stop.
    return _Written(text, spans, [], not tokenizer.ends_special(text))


def _check(text: str) -> None:
    if not text.strip():
        raise bad_chat_template("TEMPLATE_FAILED", "The chat template writes nothing for this conversation.")


def _chosen(example: Example, text: str, marked: list[Span]) -> list[Span] | None:
    """Of what the template marks, the trained answers; None where its marks are no answers one by one."""
    answers = [index for index, message in enumerate(example.messages) if message["role"] == "assistant"]
    if len(marked) != len(answers):
        return None
    spans: list[Span] = []
    for index, (start, end) in zip(answers, marked, strict=True):
        if index < example.answers_from or index in example.untrained:
            continue
        calls = example.messages[index].get("tool_calls", ())
        if any(call["function"]["name"] not in text[start:end] for call in calls):
            raise _without_tools(index, example.messages)
        spans.append((start, end))
    return spans


def _answers(example: Example, tokenizer: Tokenizer, text: str, kept: int | None) -> list[Span]:
    """Spans of the trained answers in `text`, each with the mark that ends its turn; without those that begin behind
    `kept` characters. Every answer takes two renderings of all before it: of ten thousand turns nobody could wait for
    the last."""
    spans: list[Span] = []
    for index, message in enumerate(example.messages):
        if message["role"] != "assistant" or index < example.answers_from or index in example.untrained:
            continue
        before = tokenizer.render(example.messages[:index], generation_prompt=True, tools=example.tools)
        if kept is not None and len(before) >= kept:
            break
        whole = index + 1 == len(example.messages)
        through = text if whole else tokenizer.render(example.messages[: index + 1], tools=example.tools)
        if not through.startswith(before):
            raise _not_incremental(index, example.messages)
        written = through[len(before) :]
        if any(call["function"]["name"] not in written for call in message.get("tool_calls", ())):
            raise _without_tools(index, example.messages)
        end = len(before) + _length_of_turn(written, message)
        if text[:end] != through[:end]:
            raise _not_incremental(index, example.messages)
        spans.append((len(before), end))
    return spans


def _length_of_turn(written: str, message: Message) -> int:
    """Of what the template writes for an answer: up to the mark that ends the turn, without the space after it."""
    stripped = written.rstrip()
    content = message["content"].rstrip()
    if content and stripped.endswith(content):
        return len(written)
    return len(stripped)


def _plain_text(example: Example, tokenizer: Tokenizer, loss_on: LossScope) -> _Written:
    text = example.prompt + example.completion
    trained_from = 0 if loss_on == "all" else len(example.prompt)
    return _Written(text, [(trained_from, len(text))], tokenizer.leading_ids, not example.continues)


def _without_tools(index: int, messages: list[Message]) -> JobError:
    return JobError(
        "TEMPLATE_WITHOUT_TOOLS",
        f"Turn {index + 1} of {len(messages)} calls a tool, and the chat template does not write the call: the model "
        "would learn to say nothing there.",
        "Give a chat_template that writes tool_calls, or choose a base model whose own template does.",
    )


def _not_incremental(index: int, messages: list[Message]) -> JobError:
    turns = f"turn {index + 1} of {len(messages)}"
    return JobError(
        "TEMPLATE_NOT_INCREMENTAL",
        f"The chat template writes a conversation up to the answer in {turns} differently than the whole "
        "conversation begins, so that answer cannot be told apart from what it answers.",
        "Give a chat_template that writes each turn the same whatever follows it, split the conversations into rows "
        'of one answer each, or set hyperparameters.loss_on = "all".',
    )
