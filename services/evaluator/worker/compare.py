"""Questions for the base and the tuned model, and their answers side by side."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from chassis.events import MAX_EVENT_BYTES
from engine.config.job import JobConfig
from engine.data.tokenizer import Tokenizer
from finetuneflow.v1.stage_result_pb2 import EvaluationResult, InferenceSample

_BYTES_PER_TEXT = 10 * 1024
"""Five of them must fit into one event."""


@dataclass(frozen=True)
class Question:
    """A question, as text to read and as token ids for the model."""

    instruction: str
    input: str
    expected_output: str
    prompt: list[int]
    """Token ids, at least one."""


def questions(config: JobConfig, data_dir: Path, tokenizer: Tokenizer) -> list[Question]:
    """The first `num_samples` held-out rows, then the caller's own prompts, which are asked as the rows are."""
    asked = [_of_row(row, tokenizer) for row in _rows(data_dir, config.evaluation.num_samples)]
    if not config.evaluation.prompts:
        return asked
    as_chat = json.loads((data_dir / "prepared.json").read_text())["has_chat"]
    return asked + [_of_prompt(text, config, as_chat, tokenizer) for text in config.evaluation.prompts]


def samples(
    asked: Sequence[Question],
    tuned: Sequence[Sequence[int]],
    base: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
) -> list[InferenceSample]:
    """Questions with both answers (token ids); each text is cut at 10 KiB."""
    return [
        InferenceSample(
            instruction=cut(question.instruction, _BYTES_PER_TEXT),
            input=cut(question.input, _BYTES_PER_TEXT),
            expected_output=cut(question.expected_output, _BYTES_PER_TEXT),
            model_output=cut(tokenizer.decode(after).strip(), _BYTES_PER_TEXT),
            output_length=len(after),
            base_output=cut(tokenizer.decode(before).strip(), _BYTES_PER_TEXT),
        )
        for question, after, before in zip(asked, tuned, base, strict=True)
    ]


def add_samples(result: EvaluationResult, made: Sequence[InferenceSample]) -> None:
    """Puts the samples into the result, with texts as short as it takes for all of them to fit into one event."""
    limit = _BYTES_PER_TEXT
    while True:
        del result.samples[:]
        for sample in made:
            result.samples.add(
                instruction=cut(sample.instruction, limit),
                input=cut(sample.input, limit),
                expected_output=cut(sample.expected_output, limit),
                model_output=cut(sample.model_output, limit),
                output_length=sample.output_length,
                base_output=cut(sample.base_output, limit),
            )
        if result.ByteSize() <= MAX_EVENT_BYTES * 3 // 4:
            return
        limit //= 2


def cut(text: str, limit: int) -> str:
    """The beginning of `text`, at most `limit` bytes of UTF-8, with an ellipsis where something was left out."""
    data = text.encode()
    if len(data) <= limit:
        return text
    return data[: limit - 3].decode(errors="ignore") + "…"


def _rows(data_dir: Path, count: int) -> list[dict[str, Any]]:
    path = data_dir / "eval_rows.jsonl"
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, count)]


def _of_row(row: dict[str, Any], tokenizer: Tokenizer) -> Question:
    prompt = _ids(row["prompt"], bool(row["messages"]), tokenizer)
    return Question(row["instruction"], row["input"], row["expected_output"], prompt)


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
