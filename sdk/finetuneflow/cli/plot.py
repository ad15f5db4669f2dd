"""Plots in a terminal, drawn with braille dots: 2 x 4 per character cell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from rich.text import Text

Point = tuple[float, float]

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue")
# Bit of each dot in a cell, by column and row from the top.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def plot(series: Mapping[str, Sequence[Point]], *, width: int = 60, height: int = 12) -> Text:
    """Plots series over shared axes of `width` x `height` cells, without the labels. NaN and infinity are skipped; the
    text is empty if no point remains."""
    finite = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    curves = {name: points for name, points in finite.items() if points}
    text = Text()
    if not curves:
        return text
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    left, bottom = min(xs), min(ys)
    across, up = max(xs) - left or 1.0, max(ys) - bottom or 1.0
    cells: dict[tuple[int, int], int] = {}
    colours: dict[tuple[int, int], str] = {}
    for index, points in enumerate(curves.values()):
        dots = [
            (round((x - left) / across * (2 * width - 1)), round((1 - (y - bottom) / up) * (4 * height - 1)))
            for x, y in sorted(points)
        ]
        for x, y in _joined(dots):
            cell = (y // 4, x // 2)
            cells[cell] = cells.get(cell, 0) | _DOTS[x % 2][y % 4]
            colours[cell] = _COLOURS[index % len(_COLOURS)]
    _draw(text, cells, colours, width, height, bottom, up)
    text.append(f"{'':>9} └{'─' * width}\n")
    text.append(f"{'':>10} step {left:g}{max(xs):>{width - len(f'step {left:g}')}g}\n")
    for index, name in enumerate(curves):
        text.append("   " if index else f"{'':>10} ")
        text.append("── ", style=_COLOURS[index % len(_COLOURS)]).append(name)
    text.append("\n")
    return text


def _draw(
    text: Text,
    cells: Mapping[tuple[int, int], int],
    colours: Mapping[tuple[int, int], str],
    width: int,
    height: int,
    bottom: float,
    up: float,
) -> None:
    for row in range(height):
        labelled = row in (0, height // 2, height - 1)
        label = f"{bottom + up * (1 - row / max(1, height - 1)):>9.4g} ┤" if labelled else f"{'':>9} │"
        text.append(label)
        for column in range(width):
            bits = cells.get((row, column), 0)
            text.append(chr(0x2800 + bits) if bits else " ", style=colours.get((row, column), ""))
        text.append("\n")


def _joined(dots: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns every dot on the straight lines between neighbours."""
    path = list(dots[:1])
    for (x0, y0), (x1, y1) in pairwise(dots):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        path += [(x0 + round((x1 - x0) * i / steps), y0 + round((y1 - y0) * i / steps)) for i in range(1, steps + 1)]
    return path
