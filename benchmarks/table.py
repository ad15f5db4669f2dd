"""The output of a benchmark: one line per figure, with its target and the absolute numbers."""

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
    """Parses --rounds, --seconds and --watchers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=rounds, help="number of rounds to take medians over")
    parser.add_argument("--seconds", type=float, default=seconds, help="length of each window")
    parser.add_argument("--watchers", type=int, default=100)
    return parser.parse_known_args()[0]


def show(rows: Sequence[Row]) -> None:
    """Prints the figures as a Markdown table."""
    print("| figure | measured | target | details |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row.what} | {row.value:.3g} {row.unit} | {row.target} | {row.beside} |", flush=True)
