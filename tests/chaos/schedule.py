"""Schedules of faults, drawn from a seed; the same seed gives the same schedule."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.chaos.faults import AT_CREATION, FAILPOINTS, FAULTS, Draw
from tests.chaos.results import Order, draw_orders

_ACTIONS = ("kill", "kill", "stop", "raise", "full")
_ONLY_SQLITE, _ONLY_POSTGRES = frozenset({"lock_sqlite"}), frozenset({"restart_postgres"})
# Once per schedule is enough: a cancelled job shows nothing of what comes later.
_ONCE = frozenset({"cancel", "cancel_races_completion"})
_MEAN_GAP_SECONDS = 1.0
_ORDERS_PER_JOB, _REAL_ORDERS_PER_JOB = 2, 1


@dataclass(frozen=True)
class Step:
    """One fault, `at` seconds after the jobs were created."""

    at: float
    fault: str
    draw: Draw

    def __str__(self) -> str:
        draw = self.draw
        return f"{self.at:6.2f} s  {self.fault:<26} {draw.choice or f'{draw.place:.2f}'}  {draw.seconds:.1f} s"


@dataclass(frozen=True)
class Schedule:
    """A seed, its environment, and its faults by time."""

    seed: int
    postgres: bool
    real: bool
    gateways: int
    jobs: int
    steps: tuple[Step, ...]
    creation: str = ""
    """A failpoint that is armed before the jobs are created, such as `creation.committed=kill`."""
    orders: tuple[Order, ...] = ()
    """Evaluations and exports of the jobs."""

    def __str__(self) -> str:
        where = "PostgreSQL" if self.postgres else "SQLite"
        child = "the real training child" if self.real else "a child without torch"
        head = f"schedule {self.seed}: {self.gateways} gateway(s) on {where}, {self.jobs} jobs, {child}"
        armed = [f"   before  arm_failpoint              {self.creation}"] if self.creation else []
        return "\n".join([head, *map(str, self.orders), *armed, *map(str, self.steps)])


def draw_schedule(
    seed: int, *, postgres: bool = False, real: bool = False, jobs: int = 3, faults: int = 8, only: str = ""
) -> Schedule:
    """Draws a schedule; `only` restricts it to one kind of fault."""
    rng = random.Random(f"{seed} {postgres} {real}")  # noqa: S311 - not a secret; it must come again
    unfit = _ONLY_SQLITE if postgres else _ONLY_POSTGRES
    kinds = [only] if only else [name for name in FAULTS if name not in unfit]
    steps: list[Step] = []
    at = 0.0
    while len(steps) < faults:
        # The real child needs seconds to import what it trains with.
        at += rng.expovariate(1 / _MEAN_GAP_SECONDS) * (4 if real else 1)
        name = rng.choice(kinds)
        if name in _ONCE and any(step.fault in _ONCE for step in steps):
            continue
        choice = f"{rng.choice(FAILPOINTS)}={rng.choice(_ACTIONS)}" if name == "arm_failpoint" else ""
        steps.append(Step(at, name, Draw(rng.random(), rng.uniform(0.2, 3.0), choice)))
    at_creation = faults and only in ("", "arm_failpoint") and rng.random() < 0.5
    creation = f"{rng.choice(AT_CREATION)}={rng.choice(('kill', 'stop'))}" if at_creation else ""
    # A schedule without faults makes the result that others are compared with.
    per_job = (_REAL_ORDERS_PER_JOB if real else _ORDERS_PER_JOB) if faults else 0
    orders = draw_orders(seed, jobs, per_job)
    return Schedule(seed, postgres, real, 2 if postgres else 1, jobs, tuple(steps), creation, orders)
