"""The session of a command: its client and console, and the output functions that all commands use."""

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
    """The value of `--address`; None for the default."""
    installed_probe: LocalProbe | None = None
    """Runs queries on this machine; None without the server distribution."""

    @property
    def local_probe(self) -> LocalProbe | None:
        """`installed_probe`, or None if `--address` names the server to ask instead."""
        return self.installed_probe if self.address is None else None

    @cached_property
    def client(self) -> Client:
        """The client, connected at the first call."""
        return Client(self.address)

    @cached_property
    def console(self) -> Console:
        """The console of stdout."""
        return make_console()


def session(ctx: typer.Context) -> Session:
    """Returns the session of a command, also for those of the server distribution."""
    found = ctx.find_root().obj
    if not isinstance(found, Session):
        raise TypeError("the root command has made no session")
    return found


def print_json(*messages: Message, **more: object) -> None:
    """Prints each message as a line of JSON with the field names of the protos, flushed so that a reader can follow.
    `more` are fields that are not in the message."""
    for message in messages:
        sys.stdout.write(json_line(message, **more) + "\n")
        sys.stdout.flush()


def print_deleted(console: Console, id_: str, *, as_json: bool, **more: object) -> None:
    """Prints that a resource was deleted, or its id as JSON with the fields `more`."""
    if as_json:
        sys.stdout.write(json.dumps({"deleted": id_, **more}) + "\n")
    else:
        console.print(f"Deleted {id_}")


def json_line(message: Message, **more: object) -> str:
    """Returns a message as JSON with the field names of the protos, followed by the fields `more`."""
    fields = MessageToDict(message, preserving_proto_field_name=True) | more
    return visible(json.dumps(fields, ensure_ascii=False, default=str))


def print_rows(console: Console, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table on a terminal, or tab-separated lines with a header in a pipe."""
    if not console.is_terminal:
        for row in (headers, *rows):
            # Written without rich, which would convert the tabs to spaces.
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
    """Prints the newest `limit` rows, and a hint on stderr if there are more. `list_items` takes a limit."""
    items = list(islice(list_items(limit + 1), limit + 1))
    print_rows(console, headers, map(row, items[:limit]))
    if len(items) > limit:
        error_console().print(f"Showing the newest {limit}; set --limit to show more.", style="dim")


def count(number: int, noun: str) -> str:
    """Formats a number with its noun: 1 row, 2 rows."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def not_empty(value: str) -> str:
    """Refuses an empty argument, such as an empty shell variable."""
    if not value.strip():
        raise typer.BadParameter("must not be empty; give an id or a name.")
    return value


def a_number(value: float | None) -> float | None:
    """Refuses NaN, which is neither below nor above any bound of an option."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("must be a number, not NaN.")
    return value


def shortened(text: str, length: int = 200) -> str:
    """Returns a text on one line, at most that many characters of it; `--json` has all."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def size(num_bytes: int) -> str:
    """Formats bytes in binary units: 1.5 GiB."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def speed(tokens_per_second: float) -> str:
    """Formats a speed: whole numbers, below 10 two digits."""
    number = f"{tokens_per_second:,.0f}" if tokens_per_second >= 10 else f"{tokens_per_second:.2g}"
    return f"{number} tokens/s"


def duration(seconds: float) -> str:
    """Formats seconds as 1:05, 2:01:05, or from two days on as 3 d 2:01:05."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hour, minute = divmod(minutes, 60)
    if hour >= 48:
        return f"{hour // 24} d {hour % 24}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
