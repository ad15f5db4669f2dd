"""What a benchmark prints: one line per figure, with its target and the absolute numbers beside it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A measured figure."""

    what: str
    value: float
    unit: str
    target: str
    beside: str


def arguments(rounds: int, seconds: float) -> argparse.Namespace:
    """--rounds, --seconds, --watchers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=rounds, help="medians are taken over so many")
    parser.add_argument("--seconds", type=float, default=seconds, help="of each window")
    parser.add_argument("--watchers", type=int, default=100)
    return parser.parse_known_args()[0]


def show(rows: Sequence[Row]) -> None:
    """As a table in Markdown."""
    print("| what | measured | target | beside |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row.what} | {row.value:.3g} {row.unit} | {row.target} | {row.beside} |", flush=True)
