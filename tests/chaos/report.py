"""The table of a long run, for the terminal and for docs/reliability.md."""

from __future__ import annotations

import collections
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

from tests.chaos.run import Result, total

BEGIN, END = "<!-- chaos: begin of generated results -->", "<!-- chaos: end of generated results -->"
_VERDICTS = (
    ("events lost, or missing for a watcher", "loss"),
    ("events, ordinals or jobs twice", "duplicate"),
    ("events out of order for a watcher", "reorder"),
    ("watchers that failed or never ended", "watcher failed"),
    ("stale writes accepted", "stale write"),
    ("attempts numbered, counted or open wrongly", "attempts"),
    ("jobs, evaluations and exports that did not end as they should, once", "ending"),
    ("trainings that went on from the wrong step", "resume"),
    ("checkpoints pruned that had to stay, or kept beyond the limit", "retention"),
    ("accepted or visible files that are not whole", "store"),
    ("results that differ from an unfaulted run", "result"),
    ("callers told what no caller should be told", "caller"),
    ("orphan processes", "orphan"),
)
_COUNTED = (
    "jobs",
    "evaluations and exports",
    "succeeded",
    "cancelled",
    "failed",
    "deleted",
    "results identical to an unfaulted run",
    "evaluations identical to an unfaulted run",
    "exports identical to an unfaulted run",
    "attempts",
    "resumptions",
    "most steps made again",
    "events",
    "watchers",
    "deliveries",
    "stored but never accepted",
    "unfinished writes left for the sweep",
    "pruned folders left behind",
)


def markdown(results: Sequence[Result]) -> str:
    """Renders the faults, the results and the environment of this run."""
    counts = total(list(results))
    broken = collections.Counter(
        violation.partition(":")[0] for result in results for violation in result.findings.violations
    )
    injected = sum((result.injected for result in results), collections.Counter[str]())
    seconds = sum(result.seconds for result in results)
    postgres = sum(result.schedule.postgres for result in results)
    real = sum(result.schedule.real for result in results)
    seeds = sorted({result.schedule.seed for result in results})
    lines = [
        f"Run on {datetime.now(UTC):%Y-%m-%d} at commit {_commit()}, {_machine()}, in {seconds / 60:.0f} minutes: "
        f"{len(results)} schedules (seeds {seeds[0]} to {seeds[-1]}), {postgres} of them with two gateways on "
        f"PostgreSQL, the others with one on SQLite; {real} with the real training child. "
        f"{injected.total()} faults.",
        "",
        "| violations | |",
        "|---|---|",
        *(f"| {text} | {broken[kind]} |" for text, kind in _VERDICTS),
        "",
        "| counted | |",
        "|---|---|",
        *(f"| {name} | {counts.get(name, 0):,} |" for name in _COUNTED),
        "",
        "| fault | times |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {number} |" for name, number in sorted(injected.items())),
    ]
    return "\n".join(lines)


def write_section(document: Path, text: str) -> None:
    """Inserts `text` between the markers. Raises ValueError if they are missing."""
    head, begin, rest = document.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} has no markers for the results")
    document.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent)
        return done.stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def _machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"
