"""`train_loss.png`: both loss curves of the job; `evaluation_changes.png`: the change of each held-out row."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from services.exporter.worker.metrics import Point

TRAIN_COLOUR = "#4477aa"
EVAL_COLOUR = "#cc6677"
BEST_COLOUR = "#444444"


def draw_losses(path: Path, title: str, train: Sequence[Point], evaluation: Sequence[Point], best_step: int) -> None:
    """Writes a PNG of 1280 by 720 pixels. Points that are not finite leave a gap; equal input gives equal bytes."""
    figure = Figure(figsize=(8, 4.5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _line(axes, train, "train loss", TRAIN_COLOUR)
    _line(axes, evaluation, "eval loss (held-out rows)", EVAL_COLOUR, marker="o")
    if evaluation:
        axes.axvline(best_step, color=BEST_COLOUR, linestyle=":", linewidth=1.2)
        for point in evaluation:
            if point.step == best_step and math.isfinite(point.loss):
                label = f"best: step {best_step}, {point.loss:.3f}"
                axes.plot([point.step], [point.loss], "*", color=BEST_COLOUR, markersize=13, label=label)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per trained token)")
    axes.set_title(title, fontsize=11, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    if train or evaluation:
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "no loss was logged", ha="center", transform=axes.transAxes)
    figure.savefig(path, format="png", metadata={"Software": None})


def draw_changes(path: Path, title: str, gains: Sequence[float]) -> None:
    """Writes a PNG of 1280 by 720 pixels with the gain of each row, sorted."""
    figure = Figure(figsize=(8, 4.5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ordered = sorted(gains)
    places = range(1, len(ordered) + 1)
    axes.fill_between(places, [max(gain, 0.0) for gain in ordered], step="mid", color=TRAIN_COLOUR)
    axes.fill_between(places, [min(gain, 0.0) for gain in ordered], step="mid", color=EVAL_COLOUR)
    axes.axhline(0, color=BEST_COLOUR, linewidth=0.8)
    worse = sum(gain < 0 for gain in ordered)
    axes.set_xlabel(f"held-out rows, the worst first ({worse:,} worse, {len(ordered) - worse:,} better or equal)")
    axes.set_ylabel("base loss - tuned loss (nats per trained token)")
    axes.set_title(title, fontsize=11, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, axis="y")
    figure.savefig(path, format="png", metadata={"Software": None})


def _line(axes: Axes, points: Sequence[Point], label: str, colour: str, marker: str = "") -> None:
    if not points:
        return
    if len(points) == 1:
        marker = "o"
    losses = [point.loss if math.isfinite(point.loss) else math.nan for point in points]
    axes.plot([point.step for point in points], losses, label=label, color=colour, marker=marker, markersize=4)
