"""`ftf generate`: answers to one prompt or to the rows of a file."""

from __future__ import annotations

import json as json_module
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict

from finetuneflow.cli.console import error_console, visible
from finetuneflow.cli.session import Json, a_number, not_empty, session
from finetuneflow.cli.text_files import read_text
from finetuneflow.errors import InvalidArgument, Violation
from finetuneflow.resources.answer import AnswerPart, GenerationUsage

_ROWS_AT_ONCE = 8
"""Rows that are answered together; an evaluator answers them in one batch."""
_PLACEHOLDER = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
_PROMPTS = ("prompt", "question", "instruction")
_EXPECTED = ("answer", "output", "completion", "ground_truth")

Model = Annotated[
    str, typer.Argument(callback=not_empty, help="A base model, ft:JOB, ft:JOB@STEP, or the id of a job.")
]
System = Annotated[str | None, typer.Option("--system", help="System prompt. Default: that of the model's job.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Maximum number of generated tokens.", show_default="256")]
Temperature = Annotated[
    float | None, typer.Option(callback=a_number, help="0: greedy decoding. At most 2.", show_default="0")
]
TopP = Annotated[float | None, typer.Option(callback=a_number, help="Sample from the most probable tokens only.")]
Seed = Annotated[int | None, typer.Option(help="Repeats a sampled answer.", show_default="random")]


@dataclass(frozen=True)
class Asked:
    """A row as it is asked."""

    prompt: str
    system_prompt: str | None
    ground_truth: str | None


@dataclass(frozen=True)
class Answer:
    """A complete answer."""

    text: str
    finish_reason: str
    usage: GenerationUsage | None
    logprobs: list[dict[str, Any]]


def generate(
    ctx: typer.Context,
    model: Model,
    prompt: Annotated[str | None, typer.Option(help="The question.")] = None,
    rows: Annotated[Path | None, typer.Option(help="JSON Lines file with a question per row.", dir_okay=False)] = None,
    template: Annotated[
        str | None, typer.Option(help='Prompt of a row, such as "Translate: {{ text }}". Default: its own columns.')
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Writes the answers to this JSON Lines file.")] = None,
    system: System = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text at which an answer ends. Repeatable.")] = None,
    logprobs: Annotated[bool, typer.Option(help="With --json: the probability of each token.")] = False,
    json: Json = False,
) -> None:
    """Let a model answer a prompt, or each row of a file."""
    if (prompt is None) == (rows is None):
        raise typer.BadParameter("give --prompt or --rows.")
    if rows is None and (template is not None or out is not None):
        raise typer.BadParameter("--template and --out belong to --rows.")
    if temperature in (None, 0) and (seed is not None or top_p is not None):
        raise typer.BadParameter("--seed and --top-p need a --temperature above 0.")
    models = session(ctx).client.models
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop or (),
        "logprobs": logprobs,
    }

    def ask(asked: Asked, show: Callable[[AnswerPart], None] = lambda _: None) -> Answer:
        return complete(models.generate(model, asked.prompt, system_prompt=asked.system_prompt, **settings), show)

    if prompt is not None:
        answer = ask(Asked(prompt, system, None), _no_text if json else show_part)
        if json:
            _print(_object(answer) | {"model": model})
        else:
            sys.stdout.write("\n")
        return
    assert rows is not None  # noqa: S101
    listed = list(read_rows(rows, template, system))
    if not listed:
        raise InvalidArgument(f"{rows} has no rows.", reason="INVALID_REQUEST")
    # Under its name once it is complete: a run that ends early must not replace what was there.
    part = out.with_name(f"{out.name}.part") if out else None
    sink = part.open("w", encoding="utf-8") if part else None
    try:
        with ThreadPoolExecutor(_ROWS_AT_ONCE) as threads:
            for asked, answer in zip(listed, threads.map(ask, listed), strict=True):
                line = {
                    "system_prompt": asked.system_prompt,
                    "user_prompt": asked.prompt,
                    "assistant_response": answer.text,
                    "ground_truth": asked.ground_truth,
                }
                if sink:
                    sink.write(json_module.dumps(line, ensure_ascii=False) + "\n")
                    sink.flush()
                if json:
                    _print(line | _object(answer))
                elif not sink:
                    _print(line)
    finally:
        if sink:
            sink.close()
    if out and part:
        part.replace(out)
    if out and not json:
        error_console().print(f"{len(listed):,} answers are in {out}.")


def complete(parts: Iterator[AnswerPart], show: Callable[[AnswerPart], None]) -> Answer:
    """Reads an answer to its end; `show` gets each part."""
    texts, probabilities = [], []
    last: AnswerPart | None = None
    for last in parts:
        show(last)
        texts.append(str(last))
        probabilities += [MessageToDict(each.proto, preserving_proto_field_name=True) for each in last.logprobs]
    # The last part has no text, and is false as a string.
    if last is None:
        return Answer("", "", None, [])
    return Answer("".join(texts), last.finish_reason, last.usage, probabilities)


def show_part(part: AnswerPart) -> None:
    """Prints a part as it comes; phases go to stderr."""
    if part.phase:
        error_console().print(f"{part.phase.replace('_', ' ')} …", style="dim")
    sys.stdout.write(visible(part))
    sys.stdout.flush()


def read_rows(path: Path, template: str | None, system: str | None) -> Iterator[Asked]:
    """Yields the rows of a JSON Lines file as they are asked. Raises InvalidArgument."""
    # Not splitlines: text may contain other characters that it takes for ends of lines.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json_module.loads(line)
        except ValueError as error:
            raise _bad_row(path, number, f"is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise _bad_row(path, number, "is not a JSON object")
        prompt = _own_prompt(path, number, row) if template is None else _filled(path, number, row, template)
        expected = next((row[name] for name in _EXPECTED if row.get(name) is not None), None)
        own_system = row.get("system")
        yield Asked(
            prompt,
            system if system is not None else (own_system if isinstance(own_system, str) else None),
            None if expected is None else _text(expected),
        )


def _own_prompt(path: Path, number: int, row: Mapping[str, Any]) -> str:
    name = next((name for name in _PROMPTS if isinstance(row.get(name), str) and row[name]), None)
    if name is None:
        raise _bad_row(path, number, f"has none of the columns {', '.join(_PROMPTS)}; set --template")
    more = row.get("input") if name == "instruction" else None
    # As a training joins them.
    return f"{row[name]}\n\n{more}" if isinstance(more, str) and more else row[name]


def _filled(path: Path, number: int, row: Mapping[str, Any], template: str) -> str:
    if "{%" in template:
        raise InvalidArgument(
            "--template has a Jinja statement.",
            advice="It takes columns only: {{ column }}. Prepare other prompts in a column `prompt`.",
        )

    if not _PLACEHOLDER.search(template) or "{{" in _PLACEHOLDER.sub("", template):
        raise InvalidArgument("--template has no {{ column }}, or one that is not closed.", reason="INVALID_REQUEST")

    def value(found: re.Match[str]) -> str:
        if found[1] not in row:
            raise _bad_row(path, number, f"has no column {found[1]!r}")
        return _text(row[found[1]])

    return _PLACEHOLDER.sub(value, template)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json_module.dumps(value, ensure_ascii=False)


def _bad_row(path: Path, number: int, problem: str) -> InvalidArgument:
    return InvalidArgument(
        f"Row {number} of {path} {problem}.", reason="INVALID_REQUEST", violations=[Violation(f"row {number}", problem)]
    )


def _object(answer: Answer) -> dict[str, Any]:
    usage = MessageToDict(answer.usage.proto, preserving_proto_field_name=True) if answer.usage else {}
    found = {"text": answer.text, "finish_reason": answer.finish_reason, "usage": usage}
    return found | ({"logprobs": answer.logprobs} if answer.logprobs else {})


def _no_text(_: AnswerPart) -> None:
    pass


def _print(values: Mapping[str, Any]) -> None:
    sys.stdout.write(visible(json_module.dumps(values, ensure_ascii=False)) + "\n")
    sys.stdout.flush()
