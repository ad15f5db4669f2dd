"""`ftf generate`: answers to one prompt or to the rows of a file."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict

from finetuneflow.cli.answer_file import AnswerFile
from finetuneflow.cli.asked_rows import AskedRow, read_rows
from finetuneflow.cli.console import error_console, visible
from finetuneflow.cli.row_answers import RowAnswers
from finetuneflow.cli.session import Json, a_number, not_empty, session
from finetuneflow.errors import InvalidArgument
from finetuneflow.resources.answer import AnswerPart, GenerationUsage

_DECIDING = ("max_new_tokens", "temperature", "top_p", "seed", "stop")
"""Settings on which an answer depends; with others an earlier run is not continued."""

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
    if logprobs and not json:
        raise typer.BadParameter("--logprobs needs --json.")
    models = session(ctx).client.models
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop or (),
        "logprobs": logprobs,
    }

    def ask(asked: AskedRow, show: Callable[[AnswerPart], None] = lambda _: None) -> Answer:
        return complete(models.generate(model, asked.prompt, system_prompt=asked.system_prompt, **settings), show)

    if prompt is not None:
        answer = ask(AskedRow(1, prompt, system, None), _no_text if json else show_part)
        if json:
            _print(_object(answer) | {"model": model})
        else:
            sys.stdout.write("\n")
        return
    assert rows is not None  # noqa: S101
    asked, problems = read_rows(rows, template, system)
    if not asked and not problems:
        raise InvalidArgument(f"{rows} has no rows.", reason="INVALID_REQUEST")
    file = AnswerFile(out, {"model": model, **{name: settings[name] for name in _DECIDING}}) if out else None
    run = RowAnswers[Answer](rows, asked, problems, file)
    if run.num_earlier and not json:
        error_console().print(f"{run.num_earlier:,} rows were answered by an earlier run.", style="dim")

    def show(line: dict[str, Any], answer: Answer) -> None:
        if json:
            _print(line | _object(answer))
        elif not file:
            _print(line)

    run.run(ask, lambda answer: answer.text, show, session(ctx).client.close)
    if out and not json:
        error_console().print(f"{run.num_answered:,} answers are in {out}.")


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


def _object(answer: Answer) -> dict[str, Any]:
    usage = MessageToDict(answer.usage.proto, preserving_proto_field_name=True) if answer.usage else {}
    found = {"text": answer.text, "finish_reason": answer.finish_reason, "usage": usage}
    return found | ({"logprobs": answer.logprobs} if answer.logprobs else {})


def _no_text(_: AnswerPart) -> None:
    pass


def _print(values: Mapping[str, Any]) -> None:
    sys.stdout.write(visible(json_module.dumps(values, ensure_ascii=False)) + "\n")
    sys.stdout.flush()
