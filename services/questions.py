"""Questions that models answer: held-out rows and the caller's own prompts, asked as the rows are."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.config.job import JobConfig
from engine.data.conversations import Message
from engine.data.tokenizer import Tokenizer
from engine.evaluation.held_out import HeldOutRow

MAX_TEXT_BYTES: Final = 10 * 1024
"""Length of a text in an event. Five of them must fit into one."""


@dataclass(frozen=True)
class Question:
    """A question, as text to read and as token ids for the model."""

    instruction: str
    input: str
    expected_output: str
    prompt: list[int]
    """Token ids, at least one."""


def row_question(row: HeldOutRow, tokenizer: Tokenizer) -> Question:
    """Returns a held-out row as a question."""
    prompt = _ids(row.prompt, bool(row.messages), tokenizer)
    return Question(row.instruction, row.input, row.expected_output, prompt)


def prompts(config: JobConfig, data_dir: Path, tokenizer: Tokenizer) -> list[Question]:
    """Returns the caller's own prompts, which are asked as the rows are."""
    if not config.evaluation.prompts:
        return []
    prepared = data_dir / "prepared.json"
    # Without rows there is nothing to follow.
    as_chat = json.loads(prepared.read_text())["has_chat"] if prepared.exists() else True
    return [_of_prompt(text, config, as_chat, tokenizer) for text in config.evaluation.prompts]


def room_for(question: Question, context: int | None, max_new_tokens: int, max_length: int) -> list[int]:
    """Returns the question's last tokens, as many as fit before an answer of `max_new_tokens`.

    The end of a prompt that is too long is what asks the question. `context` is the model's; None: unknown.
    """
    room = max((context or max_new_tokens + max_length) - max_new_tokens, 1)
    return question.prompt[-room:]


def cut(text: str, limit: int) -> str:
    """The beginning of `text`, at most `limit` bytes of UTF-8, with an ellipsis where something was left out."""
    data = text.encode()
    if len(data) <= limit:
        return text
    return data[: limit - 3].decode(errors="ignore") + "…"


def _of_prompt(text: str, config: JobConfig, as_chat: bool, tokenizer: Tokenizer) -> Question:
    if as_chat:
        ids = conversation_ids([{"role": "user", "content": text}], config.system_prompt, tokenizer)
    else:
        ids = plain_text_ids(text, tokenizer)
    return Question(text, "", "", ids)


def conversation_ids(messages: Sequence[Message], system_prompt: str | None, tokenizer: Tokenizer) -> list[int]:
    """Returns the token ids of a conversation up to the answer that a model is to give. The system prompt stands before
    a conversation without one of its own."""
    if system_prompt and not (messages and messages[0]["role"] == "system"):
        messages = [{"role": "system", "content": system_prompt}, *messages]
    return _ids(tokenizer.render(messages, generation_prompt=True), True, tokenizer)


def plain_text_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Returns the token ids of a text that a model is to continue."""
    return _ids(text, False, tokenizer)


def _ids(text: str, is_chat: bool, tokenizer: Tokenizer) -> list[int]:
    # A template writes its own beginning of text; plain text gets what the tokenizer habitually puts first.
    ids = tokenizer.encode(text).ids
    return (ids if is_chat else [*tokenizer.leading_ids, *ids]) or [tokenizer.eos_id]
