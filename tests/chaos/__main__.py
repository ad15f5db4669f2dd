"""The long chaos run: `python -m tests.chaos [--seeds N] [--minutes M]`. Exits with 1 if an invariant was violated."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.faults import FAULTS
from tests.chaos.real import Real
from tests.chaos.report import markdown, write_section
from tests.chaos.run import Result, run_schedule
from tests.chaos.schedule import draw_schedule
from tests.servers.postgres import binaries

_POSTGRES_EVERY, _REAL_EVERY = 3, 10


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=0, help="schedules to run; 0: as many as fit into the minutes")
    parser.add_argument("--minutes", type=float, default=15.0, help="begin no schedule after so many (default 15)")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=14, help="faults of a schedule")
    parser.add_argument("--jobs", type=int, default=5, help="jobs of a schedule")
    parser.add_argument("--only", choices=sorted(FAULTS), default="", help="inject this kind alone")
    parser.add_argument("--on", choices=("any", "sqlite", "postgres", "real"), default="any")
    parser.add_argument("--report", type=Path, help="the document that takes the results")
    given = parser.parse_args()
    # Faults of a pipe of ours to `head` are not meant.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    folder = Path(tempfile.mkdtemp(prefix="ftf-chaos-"))
    results: list[Result] = []
    ends = time.monotonic() + given.minutes * 60
    real: Real | None = None
    while (not given.seeds or len(results) < given.seeds) and (given.seeds or time.monotonic() < ends):
        number = len(results) + 1
        with_real = given.on == "real" or (given.on == "any" and number % _REAL_EVERY == _REAL_EVERY - 1)
        postgres = given.on == "postgres" or (given.on in ("any", "real") and number % _POSTGRES_EVERY == 0)
        if with_real and real is None:
            real = Real.prepare(folder)
        schedule = draw_schedule(
            given.first_seed + len(results),
            postgres=postgres and binaries() is not None,
            real=with_real,
            jobs=min(given.jobs, 2) if with_real else given.jobs,
            faults=given.faults,
            only=given.only,
        )
        home = folder / f"{schedule.seed}"
        if with_real:
            assert real is not None
            result = run_schedule(schedule, home, model=real.model, rows=real.rows, reference=real.reference)
        else:
            result = run_schedule(schedule, home)
        results.append(result)
        _say(result)
        if not result.findings.violations:
            shutil.rmtree(home)
    broken = sum(len(result.findings.violations) for result in results)
    text = markdown(results)
    print(f"\n{text}\n\n{broken} violations" + (f"; what is left of their schedules: {folder}" if broken else ""))  # noqa: T201
    if given.report:
        write_section(given.report, text)
    if not broken:
        shutil.rmtree(folder)
    return 1 if broken else 0


def _say(result: Result) -> None:
    counts = result.findings.counts
    print(  # noqa: T201
        f"  done in {result.seconds:.0f} s: {result.injected.total()} faults, {result.missed.total()} found nobody; "
        f"{counts.get('attempts', 0)} attempts, {counts.get('events', 0)} events, "
        f"{len(result.findings.violations)} violations"
    )
    for ending in result.restarts:
        print(f"  {ending} by itself, or at a failpoint, and was started again")  # noqa: T201
    for violation in result.findings.violations:
        print(f"  VIOLATION {violation}")  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
