"""The tokens that a packed tokenizer and chat template make of conversations, and the token that ends an answer."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedTokenizerFast

from engine.data.formats import Example
from engine.data.shards import first_rows
from engine.data.spans import IGNORED, without_repeated_tokens
from engine.data.tokenizer import Tokenizer
from engine.errors import JobError
from engine.evaluation.general_set import general_rows
from engine.evaluation.held_out import read_held_out
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.row_forms import RowForms

_GENERATION: Final = "generation_config.json"
_ROWS: Final = 64
_SEARCHED: Final = 1024
"""Held-out rows among which conversations are looked for; others may be plain text."""


@dataclass(frozen=True)
class Conversation:
    """A held-out conversation, and its tokens as preflight prepared them; for a base model a general question with its
    answer, and its tokens as the model's own tokenizer and chat template write them."""

    number: int
    """Number among the held-out rows or the general questions, from 1."""
    example: Example
    ids: list[int]
    labels: list[int]


def write_generation_config(child_input: ExportInput, folder: Path) -> None:
    """Names the token that ends a trained answer among those that end a generation, in generation_config.json.

    The other settings are those that the folder has already, otherwise the base model's.
    """
    own, base = folder / _GENERATION, child_input.model.path
    settings: dict[str, Any] = {}
    for file in (own, base / _GENERATION):
        if not settings and file.is_file():
            settings = json.loads(file.read_text("utf-8"))
    if settings.get("eos_token_id") is None:
        settings["eos_token_id"] = json.loads((base / "config.json").read_text("utf-8")).get("eos_token_id")
    known = _eos_ids(settings)
    ids = known + [token for token in end_of_turn_ids(child_input) if token not in known]
    settings["eos_token_id"] = ids[0] if len(ids) == 1 else ids
    own.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")


def end_of_turn_ids(child_input: ExportInput) -> list[int]:
    """Returns the tokens that end the answers which the model was trained on."""
    tokenizer = Tokenizer(child_input.model.path, child_input.config.chat_template)
    found = set()
    for row in _conversations(child_input):
        trained = [label for label in row.labels if label != IGNORED]
        if trained and trained[-1] in tokenizer.special_ids and not _is_cut(child_input, row):
            found.add(trained[-1])
    forms = RowForms.of(child_input)
    if forms.plain or not found:
        found.add(_last_special(tokenizer) if forms.chat and not found else tokenizer.eos_id)
    return sorted(found)


def check_rendering(child_input: ExportInput, folder: Path, place: str) -> int:
    """Renders held-out conversations, or general ones for a base model, with the tokenizer and the chat template in
    `folder`, as transformers does, and returns their number. `place` is the folder's name in messages.

    Raises JobError("EXPORT_DIFFERS") if one has other tokens than in the training, or than those of the base model, or
    if the token that ends a trained answer does not end a generation.
    """
    ours = Tokenizer(child_input.model.path, child_input.config.chat_template)
    packed = PreTrainedTokenizerFast.from_pretrained(folder)

    def packed_ids(example: Example) -> list[int]:
        turns = [dict(ours.named(message)) for message in example.messages]
        return list(packed.apply_chat_template(turns, tools=example.tools or None, return_dict=False))

    number = _check_ids(child_input, ours, packed_ids, place)
    if not child_input.of_base:
        _check_end(child_input, folder, packed, place)
    return number


def check_tokens(child_input: ExportInput, encode: Callable[[str], list[int]], place: str) -> int:
    """Renders held-out conversations, lets `encode` make tokens of the texts, and returns their number. `place` is the
    name of what `encode` belongs to. Raises JobError("EXPORT_DIFFERS") if one has other tokens than in the training."""
    ours = Tokenizer(child_input.model.path, child_input.config.chat_template)
    return _check_ids(
        child_input, ours, lambda example: encode(ours.render(example.messages, tools=example.tools)), place
    )


def _check_ids(child_input: ExportInput, ours: Tokenizer, ids_of: Callable[[Example], list[int]], place: str) -> int:
    number = 0
    about = "General question" if child_input.of_base else "Held-out row"
    for row in general_conversations(child_input) if child_input.of_base else _conversations(child_input):
        example = without_repeated_tokens(row.example, ours)
        ids = ids_of(example)
        if not ours.ends_special(ours.render(example.messages, tools=example.tools)):
            ids.append(ours.eos_id)
        _compare(row, ids if child_input.of_base else _cut(child_input, ids), ours, place, about)
        number += 1
    return number


def general_conversations(child_input: ExportInput) -> Iterator[Conversation]:
    """Yields general questions with their answers; none for a base model without a chat template.

    Raises JobError if the chat template fails.
    """
    tokenizer = Tokenizer(child_input.model.path)
    if not tokenizer.has_own_template:
        return
    for number, row in enumerate(islice(general_rows(), _ROWS), 1):
        turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        text = tokenizer.render(turns)
        ids = list(tokenizer.encode(text).ids)
        if not tokenizer.ends_special(text):
            ids.append(tokenizer.eos_id)
        yield Conversation(number, Example(row=number, messages=turns), ids, labels=[])


def _conversations(child_input: ExportInput) -> Iterator[Conversation]:
    if child_input.held_out is None or child_input.held_out_texts is None:
        return
    texts = read_held_out(child_input.held_out_texts, _SEARCHED)
    rows = zip(texts, first_rows(child_input.held_out, len(texts)), strict=True)
    number = 0
    for index, (text, tokens) in enumerate(rows):
        # Shards of an earlier version do not have the answers.
        if text.answer is None or number == _ROWS:
            continue
        number += 1
        example = Example(row=index + 1, messages=[*text.messages, text.answer], tools=text.tools)
        yield Conversation(index + 1, example, tokens["input_ids"], tokens["labels"])


def _is_cut(child_input: ExportInput, row: Conversation) -> bool:
    hyper = child_input.config.hyperparameters
    return hyper.truncation == "keep_start" and len(row.ids) >= hyper.max_length


def _cut(child_input: ExportInput, ids: list[int]) -> list[int]:
    hyper = child_input.config.hyperparameters
    if len(ids) <= hyper.max_length:
        return ids
    return ids[-hyper.max_length :] if hyper.truncation == "keep_end" else ids[: hyper.max_length]


def _compare(row: Conversation, ids: list[int], ours: Tokenizer, place: str, about: str) -> None:
    for position, (trained, found) in enumerate(zip_longest(row.ids, ids)):
        if trained != found:
            tokens = [
                "nothing" if token is None else f"{token} ({ours.decode([token])!r:.80})" for token in (trained, found)
            ]
            raise _differs(
                f"{about} {row.number} is rendered by {place} to other tokens than "
                f"{'it was trained with' if row.labels else 'by the base model'}: token {position + 1} was {tokens[0]} "
                f"and is {tokens[1]}"
            )


def _check_end(child_input: ExportInput, folder: Path, packed: Any, place: str) -> None:
    settings = json.loads((folder / _GENERATION).read_text("utf-8"))
    for token in end_of_turn_ids(child_input):
        if token not in _eos_ids(settings):
            name = packed.decode([token])
            raise _differs(f"{_GENERATION} of {place} does not stop at {name!r}, which ends the trained answers")


def _eos_ids(settings: dict[str, Any]) -> list[int]:
    ids = settings.get("eos_token_id")
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


def _last_special(tokenizer: Tokenizer) -> int:
    """Returns the token that ends a conversation; the end-of-text token if the template writes none."""
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]
    try:
        text = tokenizer.render(turns).rstrip()
    except JobError:
        # A template may refuse this conversation, and take those of the job.
        return tokenizer.eos_id
    return tokenizer.encode(text).ids[-1] if tokenizer.ends_special(text) else tokenizer.eos_id


def _differs(problem: str) -> JobError:
    message = f"{problem}. Nothing of the package is published."
    return JobError("EXPORT_DIFFERS", message, "Please report it, with the base model and the chat template.")
