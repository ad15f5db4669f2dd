"""Defines what all commands share: the session with its client and console, and how results are printed."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from finetuneflow.cli.console import error_console, make_console, visible, visible_cell
from finetuneflow.client import Client

if TYPE_CHECKING:
    from finetuneflow.cli.local_probe import LocalProbe

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]


@dataclass
class Session:
    """One run of `ftf`."""

    address: str | None = None
    """The server's address; None for the default one."""
    installed_probe: LocalProbe | None = None
    """Runs queries on this machine; None without the server distribution."""

    @property
    def local_probe(self) -> LocalProbe | None:
        """`installed_probe`, or None if `--address` names the server to ask instead."""
        return self.installed_probe if self.address is None else None

    @cached_property
    def client(self) -> Client:
        return Client(self.address)

    @cached_property
    def console(self) -> Console:
        return make_console()


def session(ctx: typer.Context) -> Session:
    """Also for the commands of the server distribution."""
    found = ctx.find_root().obj
    if not isinstance(found, Session):
        raise TypeError("the root command has made no session")
    return found


def print_json(*messages: Message) -> None:
    """protobuf's JSON with the field names of the protos; one line each, flushed, so that a reader can follow."""
    for message in messages:
        sys.stdout.write(json_line(message) + "\n")
        sys.stdout.flush()


def json_line(message: Message) -> str:
    return visible(json.dumps(MessageToDict(message, preserving_proto_field_name=True), ensure_ascii=False))


def print_rows(console: Console, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on a terminal, tab-separated lines with a header in a pipe."""
    if not console.is_terminal:
        for row in (headers, *rows):
            # Past rich, which would turn the tabs into spaces.
            console.file.write("\t".join(map(visible_cell, row)) + "\n")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*map(visible_cell, row))
    console.print(table, soft_wrap=False)


def print_newest(
    console: Console,
    headers: Sequence[str],
    list_items: Callable[[int], Iterable[T]],
    row: Callable[[T], Sequence[str]],
    limit: int,
) -> None:
    """The newest `limit` rows, and on stderr a word that there are more. `list_items` takes a limit."""
    items = list(islice(list_items(limit + 1), limit + 1))
    print_rows(console, headers, map(row, items[:limit]))
    if len(items) > limit:
        error_console().print(f"The newest {limit}; there are more: --limit shows them.", style="dim")


def count(number: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def not_empty(value: str) -> str:
    """For arguments: an empty shell variable is nothing to look for."""
    if not value.strip():
        raise typer.BadParameter("is empty; give an id or a name.")
    return value


def a_number(value: float | None) -> float | None:
    """For options: "nan" is read as a number, and is neither below nor above any bound."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("is no number.")
    return value


def size(num_bytes: int) -> str:
    """Binary units: 1.5 GiB."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float) -> str:
    """1:05, or 2:01:05."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
