"""Defines the options that say how rows are read; several commands share them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from finetuneflow.cli.text_files import read_text
from finetuneflow.fields import INT32_MAX

Map = Annotated[
    list[str] | None,
    typer.Option("--map", help="Column mapping, ours=theirs, such as question=prompt. Repeatable."),
]
Template = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="File with a Jinja template that turns a row into examples."),
]
Format = Annotated[str | None, typer.Option("--format", help="Format of the rows.", show_default="detected")]
MaxSamples = Annotated[
    int | None,
    typer.Option(
        min=1, max=INT32_MAX, help="Maximum number of rows of each dataset, drawn by the seed.", show_default="all"
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        min=1, help="Maximum number of trained tokens of each dataset, drawn by the seed.", show_default="all"
    ),
]
MaxLength = Annotated[
    int | None, typer.Option(max=INT32_MAX, help="Maximum number of tokens per row.", show_default="2048")
]
TruncationSide = Annotated[
    str | None,
    typer.Option(
        "--truncation", help="Treatment of longer rows: keep_start, keep_end or drop.", show_default="keep_start"
    ),
]
SystemPrompt = Annotated[
    str | None, typer.Option("--system-prompt", help="System prompt for conversations that have none.")
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option(
        "--chat-template", exists=True, dir_okay=False, help="File with a chat template that replaces the model's."
    ),
]


def source_settings(
    mapping: list[str] | None,
    template: Path | None,
    format_: str | None,
    max_samples: int | None = None,
    max_tokens: int | None = None,
) -> dict[str, Any]:
    """Returns the fields of a data source that the options set."""
    pairs = dict(entry.split("=", 1) for entry in mapping or [] if "=" in entry)
    if len(pairs) != len(mapping or []):
        raise typer.BadParameter(
            "Write ours=theirs, such as question=prompt, and each of our names once.", param_hint="--map"
        )
    text = read_text(template) if template else None
    fields = {
        "mapping": pairs or None,
        "template": text,
        "format": format_,
        "max_samples": max_samples,
        "max_tokens": max_tokens,
    }
    return {name: value for name, value in fields.items() if value is not None}


def reading_settings(
    max_length: int | None, truncation: str | None, system_prompt: str | None, chat_template: Path | None
) -> dict[str, Any]:
    """Returns the fields of a validation or preview request that say how rows are tokenized."""
    return {
        "max_length": max_length,
        "truncation": truncation,
        "system_prompt": system_prompt,
        "chat_template": read_text(chat_template) if chat_template else None,
    }


def sources(data: list[str], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the data sources of a job, each with the fields that `source_settings` returned."""
    if settings and not data:
        raise typer.BadParameter(
            "--map, --template, --format, --max-samples and --max-tokens need DATA that they apply to.",
            param_hint="DATA",
        )
    return [{**settings, "dataset": each} for each in data]
