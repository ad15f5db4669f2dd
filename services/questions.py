"""Questions that models answer: held-out rows and the caller's own prompts, asked as the rows are."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.config.job import JobConfig
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
    as_chat = json.loads((data_dir / "prepared.json").read_text())["has_chat"]
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
    written = text
    if as_chat:
        messages = [{"role": "user", "content": text}]
        if config.system_prompt:
            messages.insert(0, {"role": "system", "content": config.system_prompt})
        written = tokenizer.render(messages, generation_prompt=True)
    return Question(text, "", "", _ids(written, as_chat, tokenizer))


def _ids(text: str, is_chat: bool, tokenizer: Tokenizer) -> list[int]:
    # A template writes its own beginning of text; plain text gets what the tokenizer habitually puts first.
    ids = tokenizer.encode(text).ids
    return (ids if is_chat else [*tokenizer.leading_ids, *ids]) or [tokenizer.eos_id]
