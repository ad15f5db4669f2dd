"""Runs one schedule: the stack, jobs, watchers, faults, and in the end the checker."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import heapq
import itertools
import json
import random
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import psutil

from finetuneflow.errors import ApiError, ServerUnreachable
from tests.chaos.checker import Evidence, Expected, Findings, Seen, check
from tests.chaos.child import evaluation_of, package_of
from tests.chaos.faults import FAULTS, Draw, Missed, Wanted, World
from tests.chaos.history import read_histories
from tests.chaos.results import Ordered, ResultCalls
from tests.chaos.schedule import Schedule, Step
from tests.chaos.stack import Stack
from tests.chaos.watchers import Watcher, jobs_of

STEPS, SAVE_STEPS = 80, 10
"""Steps of a job with the torch-free child: two seconds of training, eight checkpoints."""
MAX_ATTEMPTS, FEW_ATTEMPTS = 20, 3
"""max_attempts of a job that must not fail by faults, and of every third job, which may."""
_CREATE_SECONDS = 60.0
_END_SECONDS = 150.0
_TICK_SECONDS = 0.02
_AGAIN_SECONDS, _VICTIM_SECONDS = 0.15, 20.0
"""A fault without a victim is retried at this interval, for at most this long."""


@dataclass
class Result:
    """The result of a schedule."""

    schedule: Schedule
    findings: Findings = field(default_factory=Findings)
    injected: collections.Counter[str] = field(default_factory=collections.Counter)
    missed: collections.Counter[str] = field(default_factory=collections.Counter)
    restarts: list[str] = field(default_factory=list)
    """Processes that ended by themselves and were restarted."""
    seconds: float = 0.0
    evidence: Evidence | None = None

    def report(self) -> str:
        """Returns the text for a failed test: the schedule and all violations."""
        return "\n".join([str(self.schedule), "", *self.findings.violations, *self.restarts])


def run_schedule(
    schedule: Schedule,
    home: Path,
    *,
    model: Path | None = None,
    rows: Path | None = None,
    reference: str = "",
    say: Callable[[str], None] = print,
) -> Result:
    """Prints the schedule, seed first, and runs it. With the real child: `model`, the rows to train on, and the hash
    of the adapter of an unfaulted run."""
    say(str(schedule))
    began = time.monotonic()
    result = Result(schedule)
    rows = rows or _rows(home)
    with Stack(home, gateways=schedule.gateways, postgres=schedule.postgres, model=model) as stack:
        stack.start()
        world = World(stack, stack.clients())
        channels = [grpc.insecure_channel(address) for address in stack.addresses()]
        give_up = threading.Event()
        _create(world, schedule, rows)
        _order(world, schedule, channels, give_up)
        _inject(world, schedule, result)
        _finish(world, result, give_up)
        _check_no_child_is_left(stack, result)
        stack.stop()
        orphans = stack.orphans()
        world.callers.shutdown(cancel_futures=True)
        watchers = [w for wanted in (*world.jobs, *world.results) for w in wanted.watchers]
        expected = {job.job_id: _expected(job, real=schedule.real, reference=reference) for job in world.jobs}
        result.evidence = Evidence(
            histories=read_histories(stack.database_url),
            expected=expected | {r.result_id: _expected_result(r, expected) for r in world.results if r.result_id},
            watchers=[Seen(w.name, w.work_id, w.seen, w.error, w.ended) for w in watchers],
            store=stack.artifacts,
            orphans=orphans,
            damaged=frozenset(world.damaged),
        )
        found = check(result.evidence)
        result.findings.violations += found.violations
        result.findings.counts |= found.counts
        for problem in (*world.problems, *(problem for each in world.results for problem in each.problems)):
            result.findings.add("caller", problem)
        result.restarts = stack.unexpected_exits
        for client in world.clients:
            client.close()
        for channel in channels:
            channel.close()
    result.seconds = time.monotonic() - began
    return result


def spec_of(seed: int, number: int, *, real: bool) -> dict[str, Any]:
    """Returns the job that a schedule creates, without `training_data`."""
    hyper: dict[str, Any] = {"max_steps": STEPS, "save_steps": SAVE_STEPS, "eval_steps": SAVE_STEPS, "logging_steps": 1}
    if real:
        hyper |= {"max_length": 64, "early_stopping_patience": 0}
    return {
        "base_model": "tiny" if real else "chain",
        "recipe": "finetuneflow",
        "hyperparameters": hyper,
        "max_attempts": _max_attempts(number),
        "seed": seed,
    }


def _max_attempts(number: int) -> int:
    return FEW_ATTEMPTS if number % 3 == 2 else MAX_ATTEMPTS


def _rows(home: Path) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    path = home / "rows.jsonl"
    path.write_text(json.dumps({"question": "Which?", "answer": "This."}) + "\n")
    return path


def _create(world: World, schedule: Schedule, rows: Path) -> None:
    """Creates the jobs, with watchers on each; a gateway may die in the middle."""
    if schedule.creation:
        name, _, action = schedule.creation.partition("=")
        (world.stack.failpoints / name).write_text(action)
    rng = random.Random(schedule.seed)  # noqa: S311 - must come again
    for number in range(schedule.jobs):
        # The real one is compared with one reference run.
        seed = 1 if schedule.real else (schedule.seed * 1000 + number) % 2**32
        creating = world.callers.submit(_create_one, world, schedule, rows, seed, number)
        while not creating.done():
            world.stack.keep()
            time.sleep(_TICK_SECONDS)
        job_id = creating.result()
        sources = [jobs_of(client) for client in world.clients]
        watchers = [
            Watcher("steady", sources[:1], job_id, random.Random(rng.random())),  # noqa: S311
            Watcher("hopping", sources, job_id, random.Random(rng.random()), hop_after=30),  # noqa: S311
        ]
        world.jobs.append(Wanted(job_id, seed, watchers, may_fail=_max_attempts(number) == FEW_ATTEMPTS))


def _create_one(world: World, schedule: Schedule, rows: Path, seed: int, number: int) -> str:
    """Creates a job as a caller without a response does: again, with the same request_id."""
    deadline = time.monotonic() + _CREATE_SECONDS
    spec = spec_of(seed, number, real=schedule.real)
    request_id = f"{schedule.seed}-{number}"
    while True:
        client = world.clients[number % len(world.clients)]
        try:
            return client.jobs.create(training_data=str(rows), request_id=request_id, **spec).id
        except ServerUnreachable:
            if time.monotonic() > deadline:
                raise
            number += 1


def _order(world: World, schedule: Schedule, channels: list[grpc.Channel], give_up: threading.Event) -> None:
    """Starts the callers who ask for evaluations and exports."""
    calls = {kind: ResultCalls(kind, channels) for kind in ("evaluation", "export")}
    for number, order in enumerate(schedule.orders):
        rng = random.Random(f"{schedule.seed} {number}")  # noqa: S311 - must come again
        watcher = world.jobs[order.job].watchers[0]
        request_id = f"{schedule.seed}-result-{number}"
        ordered = Ordered(order, watcher, calls[order.kind], request_id, rng, give_up)
        world.results.append(ordered)
        ordered.start()


def _inject(world: World, schedule: Schedule, result: Result) -> None:
    """Applies the faults at their times, and their follow-ups."""
    began = time.monotonic()
    order = itertools.count()
    due: list[tuple[float, int, Callable[[], object]]] = []

    def inject(name: str, draw: Draw, until: float) -> None:
        try:
            later = FAULTS[name](world, draw)
        except Missed:
            now = time.monotonic()
            if now > until or world.ended():
                result.missed[name] += 1
            else:
                heapq.heappush(due, (now + _AGAIN_SECONDS, next(order), lambda: inject(name, draw, until)))
            return
        if name not in ("arm_failpoint", "lose_reply_after_commit", "lose_live_publish"):
            result.injected[name] += 1
        for seconds, action in later:
            heapq.heappush(due, (time.monotonic() + seconds, next(order), action))

    def first_try(step: Step) -> Callable[[], object]:
        return lambda: inject(step.fault, step.draw, began + step.at + _VICTIM_SECONDS)

    for step in schedule.steps:
        heapq.heappush(due, (began + step.at, next(order), first_try(step)))
    while due:
        if time.monotonic() >= due[0][0]:
            heapq.heappop(due)[2]()
            continue
        world.stack.keep()
        time.sleep(_TICK_SECONDS)
    for taken in world.stack.failpoints.glob("*.taken"):
        name = taken.name.removesuffix(".taken").rpartition(".")[0]
        action = taken.read_text()
        # Out of space is a fault of its own, and its places were taken for it many times.
        if not (name == "store.synced" and action == "full"):
            result.injected[f"failpoint {name} {action}"] += 1


def _finish(world: World, result: Result, give_up: threading.Event) -> None:
    """Ends all faults and resumes paused jobs, until all work has ended and every watcher has seen it."""
    world.stack.heal()
    deadline = time.monotonic() + _END_SECONDS
    # A call may wait for a gateway that the keeper, in this thread, has to start first.
    ending = world.callers.submit(_until_ended, world, deadline)
    while not ending.done():
        world.stack.keep()
        time.sleep(_TICK_SECONDS)
    for job_id in ending.result():
        result.findings.add("ending", f"{job_id} has not ended {_END_SECONDS:.0f} s after the last fault")
    while time.monotonic() < deadline and not all(each.ended for each in world.results):
        world.stack.keep()
        time.sleep(_TICK_SECONDS)
    give_up.set()
    for each in world.results:
        if not each.ended:
            result.findings.add("ending", f"{each.order} ({each.result_id or 'not created'}) has not ended")
    for wanted in (*world.jobs, *world.results):
        for watcher in wanted.watchers:
            watcher.join(max(10.0, deadline - time.monotonic()))


def _until_ended(world: World, deadline: float) -> list[str]:
    """Jobs that have not ended in time."""
    waiting = [job.job_id for job in world.jobs]
    while waiting and time.monotonic() < deadline:
        for job_id in tuple(waiting):
            with contextlib.suppress(ApiError):
                row = world.clients[0].jobs.get(job_id)
                if row.ended:
                    waiting.remove(job_id)
                elif row.state in ("PAUSED", "PAUSING"):
                    world.clients[0].jobs.resume(job_id)
        time.sleep(0.1)
    return waiting


def _check_no_child_is_left(stack: Stack, result: Result) -> None:
    deadline = time.monotonic() + 10.0
    while left := stack.children():
        if time.monotonic() > deadline:
            for child in left:
                with contextlib.suppress(psutil.Error):
                    result.findings.add("orphan", f"{child.pid} {' '.join(child.cmdline())}")
            return
        time.sleep(0.1)


def _expected(job: Wanted, *, real: bool, reference: str) -> Expected:
    if real:
        return Expected(adapter_sha256, reference, job.cancel, job.may_fail)
    whole = hashlib.sha256(package_of(job.seed, STEPS, SAVE_STEPS)).hexdigest()
    tuned_loss = evaluation_of(job.seed, STEPS, SAVE_STEPS)
    return Expected(file_sha256, whole, job.cancel, job.may_fail, tuned_loss=tuned_loss)


def _expected_result(ordered: Ordered, jobs: Mapping[str, Expected]) -> Expected:
    """Returns what its job expects, but for what was asked of the evaluation or export itself."""
    job = jobs[ordered.job.work_id]
    return replace(job, cancel=ordered.cancel, deleted=ordered.deleted)


def file_sha256(path: Path) -> str:
    """Digest of the whole package."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def adapter_sha256(package: Path) -> str:
    """Digest of the weights only: other files contain times and ids."""
    with zipfile.ZipFile(package) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("adapter_model.safetensors"))
        return hashlib.sha256(archive.read(name)).hexdigest()


def total(results: list[Result]) -> Mapping[str, int]:
    """Adds up the counts of all schedules; a name with `most` is a maximum."""
    counts: dict[str, int] = {}
    for result in results:
        for name, number in result.findings.counts.items():
            counts[name] = max(counts.get(name, 0), number) if name.startswith("most") else counts.get(name, 0) + number
    return counts
