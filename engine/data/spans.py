"""Which tokens of a row are trained: the one place that decides it, for previews, training and evaluation alike.

The chat template itself says where an answer is: the conversation rendered up to an answer (with the generation
prompt) and rendered with it differ by exactly what the model has to write. No marker of any model is built in.
"""

from dataclasses import dataclass

from engine.config.job import LossScope
from engine.data.conversations import Message
from engine.data.formats import Example
from engine.data.tokenizer import Tokenizer
from engine.errors import JobError

IGNORED = -100
"""Label of a token that is not trained."""

Span = tuple[int, int]
"""Characters [start, end) of a rendered text."""


@dataclass(frozen=True)
class Tokens:
    """A row as training sees it: ids, and per token its id where it is trained, else -100."""

    input_ids: list[int]
    labels: list[int]
    truncated: bool
    num_uncut: int
    """Tokens before truncation."""

    @property
    def num_trained(self) -> int:
        return sum(label != IGNORED for label in self.labels)


def tokens_of(example: Example, tokenizer: Tokenizer, loss_on: LossScope, max_length: int) -> Tokens:
    """Ids and labels of a row, cut at the end to `max_length` tokens.

    Raises JobError: TEMPLATE_FAILED, TEMPLATE_NOT_INCREMENTAL when the template gives no way to tell answers apart,
    TEMPLATE_WITHOUT_TOOLS when it leaves out what an assistant turn calls, ID_OUT_OF_RANGE for ids that the vocabulary
    does not have.
    """
    if example.is_tokenized:
        ids, labels = _tokenized(example, tokenizer, loss_on)
    elif example.is_chat:
        ids, labels = _conversation(example, tokenizer, loss_on, max_length)
    else:
        ids, labels = _plain_text(example, tokenizer, loss_on)
    return Tokens(ids[:max_length], labels[:max_length], len(ids) > max_length, len(ids))


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


def _tokenized(example: Example, tokenizer: Tokenizer, loss_on: LossScope) -> tuple[list[int], list[int]]:
    largest = max(*example.input_ids, *example.labels, 0)
    if largest >= tokenizer.num_ids:
        raise JobError(
            "ID_OUT_OF_RANGE",
            f"The row has id {largest:,}; the base model's vocabulary ends at {tokenizer.num_ids - 1:,}.",
            "Tokenise the rows with the base model's own tokenizer, or upload them as text.",
        )
    ids = list(example.input_ids)
    return ids, ids if loss_on == "all" else list(example.labels)


def _conversation(
    example: Example, tokenizer: Tokenizer, loss_on: LossScope, max_length: int
) -> tuple[list[int], list[int]]:
    text = tokenizer.render(example.messages, tools=example.tools)
    encoding = tokenizer.encode(text)
    kept = encoding.offsets[max_length - 1][1] if len(encoding.ids) > max_length else len(text)
    spans = [(0, len(text))] if loss_on == "all" else _answers(example, tokenizer, text, kept)
    labels = [IGNORED] * len(encoding.ids)
    for start, end in spans:
        for index, (first, last) in enumerate(encoding.offsets):
            # A token that straddles a border holds characters of the answer: the model has to write it.
            if first < end and last > start:
                labels[index] = encoding.ids[index]
    ids = encoding.ids
    if tokenizer.encode(text.rstrip()).ids[-1] not in tokenizer.special_ids:
        # Generation ends at a special token only: a template that writes none would teach the model never to stop.
        ids, labels = [*ids, tokenizer.eos_id], [*labels, tokenizer.eos_id]
    return ids, labels


def _answers(example: Example, tokenizer: Tokenizer, text: str, kept: int) -> list[Span]:
    """Spans of the trained answers that begin in the first `kept` characters of `text`, each with the mark that ends
    its turn. Every answer takes two renderings of all before it: of ten thousand turns nobody could wait for the last.
    """
    spans: list[Span] = []
    for index, message in enumerate(example.messages):
        if message["role"] != "assistant" or index < example.answers_from or index in example.untrained:
            continue
        before = tokenizer.render(example.messages[:index], generation_prompt=True, tools=example.tools)
        if len(before) >= kept:
            break
        through = tokenizer.render(example.messages[: index + 1], tools=example.tools)
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


def _plain_text(example: Example, tokenizer: Tokenizer, loss_on: LossScope) -> tuple[list[int], list[int]]:
    encoding = tokenizer.encode(example.prompt + example.completion)
    trained_from = 0 if loss_on == "all" else len(example.prompt)
    end = [] if example.continues else [tokenizer.eos_id]
    ids = [*tokenizer.leading_ids, *encoding.ids, *end]
    # The begin-of-text token is given, never written by the model.
    labels = [IGNORED] * len(tokenizer.leading_ids)
    labels += [
        token_id if last > trained_from else IGNORED
        for token_id, (_, last) in zip(encoding.ids, encoding.offsets, strict=True)
    ]
    return ids, [*labels, *end]


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
