"""The faults: small functions, each with one effect on a running stack.

A fault gets the world and a Draw (a place in [0, 1) that picks its victim, and how long it lasts). It returns what
happens later: (seconds from now, what to do). One that finds no victim raises Missed.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
import psutil

from finetuneflow import Client
from finetuneflow.errors import ApiError, FailedPrecondition
from finetuneflow.resources.job import Job
from tests.chaos.results import Ordered
from tests.chaos.stack import LEASE_SECONDS, Proc, Stack
from tests.chaos.watchers import Watcher

T = TypeVar("T")

_VERB_SECONDS = 40.0
_AT_ONCE = 0.3
"""Share of draws that choose the first possible victim, such as a starting child or a waiting job."""

FAILPOINTS = (
    "claim.granted",
    "claim.spooled",
    "claim.acked",
    "child.started",
    "attempt.ending",
    "spool.append",
    "spool.appended",
    "record.synced",
    "record.renamed",
    "store.synced",
    "store.renamed",
    "upload.store",
    "upload.stored",
    "report.answered",
    "report.forgotten",
    "decision.flushed",
    "decision.committed",
    "decision.published",
    "decision.dispatched",
    "discard.begun",
    "fetch.verified",
)

"""Failpoints that a running job passes."""
AT_CREATION = ("upload.received", "dataset.stored", "dataset.recorded", "creation.flushed", "creation.committed")
"""Failpoints that the creation of a job passes."""


class Missed(Exception):
    """Raised if the fault has no victim."""


@dataclass(frozen=True)
class Draw:
    """The random choices of a schedule for one fault."""

    place: float
    """Value in [0, 1) that selects the target."""
    seconds: float
    """Duration of the fault."""
    choice: str = ""
    """Failpoint and action, such as `store.synced=kill`."""

    def of(self, options: Sequence[T]) -> T:
        if not options:
            raise Missed
        return options[int(self.place * len(options))]


@dataclass
class Wanted:
    """The requests about a job, and their results."""

    job_id: str
    seed: int
    watchers: list[Watcher]
    may_fail: bool = False
    """True if the job has so few attempts that faults may exhaust them."""
    cancel: str = ""
    """Result of the cancel request: accepted, refused or unknown."""


@dataclass
class World:
    """A running stack, its jobs, and the requests about them."""

    stack: Stack
    clients: list[Client]
    jobs: list[Wanted] = field(default_factory=list)
    results: list[Ordered] = field(default_factory=list)
    """The evaluations and exports of these jobs."""
    damaged: set[str] = field(default_factory=set)
    callers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8, "caller"))
    problems: list[str] = field(default_factory=list)
    """Errors that no caller should receive."""

    def ended(self) -> bool:
        """Returns True if nothing is left that a fault could concern."""
        return all(job.watchers[0].ended for job in self.jobs) and all(result.ended for result in self.results)

    def call(self, draw: Draw, ask: Callable[[Client], Job]) -> None:
        """Calls the gateways in turn from a separate thread until one answers."""
        self.callers.submit(self._ask, draw, ask)

    def _ask(self, draw: Draw, ask: Callable[[Client], Job]) -> None:
        self.answer(draw, ask)

    def answer(self, draw: Draw, ask: Callable[[Client], Job]) -> str:
        """Returns accepted, refused, or unknown if no answer arrived in time."""
        first = int(draw.place * len(self.clients))
        deadline = time.monotonic() + _VERB_SECONDS
        lost = False
        while time.monotonic() < deadline:
            for client in (*self.clients[first:], *self.clients[:first]):
                try:
                    ask(client)
                except FailedPrecondition:
                    # If an earlier answer was lost, that call may have succeeded and be the cause of this refusal.
                    return "unknown" if lost else "refused"
                except ApiError:
                    lost = True
                else:
                    return "accepted"
            time.sleep(0.1)
        return "unknown"


Later = Iterable[tuple[float, Callable[[], object]]]
Fault = Callable[[World, Draw], Later]


def _busy(world: World, draw: Draw, *names: str) -> Proc:
    """Returns one of these workers that has a child."""
    return draw.of([world.stack.workers[name] for name in names if world.stack.workers[name].children()])


def _busy_trainer(world: World, draw: Draw) -> Proc:
    """Returns a trainer that has a child; in most draws one that has written a checkpoint."""
    trainers = world.stack.trainers
    if draw.place < _AT_ONCE:
        return draw.of([proc for proc in trainers if proc.children()])
    return draw.of([proc for proc in trainers if any(map(_has_saved, proc.children()))])


def _has_saved(child: psutil.Process) -> bool:
    """Returns True if a training child has written a checkpoint."""
    try:
        return Path(child.cmdline()[-1]).with_name("out").joinpath("checkpoints").exists()
    except (psutil.Error, IndexError):
        return False


def _any_child(world: World, draw: Draw) -> psutil.Process:
    """Selects a child of any stage; in most draws one that has written a checkpoint."""
    children = world.stack.children()
    return draw.of(children if draw.place < _AT_ONCE else [child for child in children if _has_saved(child)])


def _any_job(world: World, draw: Draw) -> Wanted:
    """Selects a job in any state; in most draws one that trains and has a checkpoint."""
    if draw.place < _AT_ONCE:
        return draw.of(world.jobs)
    return draw.of([j for j in world.jobs if "checkpoint" in j.watchers[0].kinds and not j.watchers[0].trained])


def _kill(proc: Proc, seconds: float) -> Later:
    if not proc.kill(keep_down=True):
        proc.wanted = True
        raise Missed
    return [(seconds, proc.start)]


def _stop(proc: Proc, seconds: float) -> Later:
    if not proc.signal(signal.SIGSTOP):
        raise Missed
    return [(seconds, lambda: proc.signal(signal.SIGCONT))]


def kill_child(world: World, draw: Draw) -> Later:
    """SIGKILL of the process that trains, evaluates or packs."""
    child = _any_child(world, draw)
    with contextlib.suppress(psutil.NoSuchProcess):
        child.kill()
    return ()


def stop_child(world: World, draw: Draw) -> Later:
    """SIGSTOP of a child; longer than its stall limit it is killed by its supervisor."""
    child = _any_child(world, draw)
    with contextlib.suppress(psutil.NoSuchProcess):
        child.suspend()

    def resume() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.resume()

    return [(draw.seconds, resume)]


def kill_trainer(world: World, draw: Draw) -> Later:
    """SIGKILL of a trainer, one that works if there is one."""
    return _kill(_busy_trainer(world, draw), draw.seconds)


def kill_probe(world: World, draw: Draw) -> Later:
    """SIGKILL."""
    return _kill(_busy(world, draw, "probe"), draw.seconds)


def kill_evaluator(world: World, draw: Draw) -> Later:
    """SIGKILL."""
    return _kill(_busy(world, draw, "evaluator"), draw.seconds)


def kill_exporter(world: World, draw: Draw) -> Later:
    """SIGKILL."""
    return _kill(_busy(world, draw, "exporter"), draw.seconds)


def kill_gateway(world: World, draw: Draw) -> Later:
    """SIGKILL of one gateway."""
    return _kill(draw.of(world.stack.gateways), draw.seconds)


def kill_all_gateways(world: World, draw: Draw) -> Later:
    """No gateway for longer than a lease."""
    later: list[tuple[float, Callable[[], object]]] = []
    for proc in world.stack.gateways:
        proc.kill(keep_down=True)
        later.append((LEASE_SECONDS + 1.0 + draw.seconds, proc.start))
    return later


def kill_nats(world: World, draw: Draw) -> Later:
    """SIGKILL of the broker."""
    return _kill(world.stack.nats, draw.seconds)


def stop_trainer_past_lease(world: World, draw: Draw) -> Later:
    """SIGSTOP of a worker until its claim has expired and another has the attempt."""
    return _stop(_busy_trainer(world, draw), LEASE_SECONDS + 3.0 + draw.seconds)


def stop_trainer_briefly(world: World, draw: Draw) -> Later:
    """Shorter than its lease."""
    return _stop(_busy_trainer(world, draw), min(draw.seconds, LEASE_SECONDS / 2))


def stop_gateway(world: World, draw: Draw) -> Later:
    """SIGSTOP for less or more than a lease."""
    return _stop(draw.of(world.stack.gateways), 2 * draw.seconds)


def stop_nats(world: World, draw: Draw) -> Later:
    """SIGSTOP for less or more than a lease."""
    return _stop(world.stack.nats, 2 * draw.seconds)


def wipe_nats(world: World, draw: Draw) -> Later:
    """Restarts the broker without its stored data."""
    later = _kill(world.stack.nats, draw.seconds)
    world.stack.wipe_nats()
    return later


def roll_nats_back(world: World, draw: Draw) -> Later:
    """Restarts the broker with a backup of some seconds ago."""
    stack = world.stack
    older = stack.home / "nats-older"
    if not stack.nats.kill(keep_down=True):
        stack.nats.wanted = True
        raise Missed
    shutil.rmtree(older, ignore_errors=True)
    shutil.copytree(stack.nats_store, older)
    stack.nats.start()

    def back() -> None:
        stack.nats.kill(keep_down=True)
        stack.wipe_nats()
        shutil.copytree(older, stack.nats_store)
        stack.nats.start()

    return [(1.0 + draw.seconds, back)]


def lock_sqlite(world: World, draw: Draw) -> Later:
    """Another process holds SQLite's write lock."""
    if world.stack.postgres:
        raise Missed
    try:
        connection = world.stack.lock_sqlite()
    except sqlite3.OperationalError as error:
        raise Missed from error
    return [(2 * draw.seconds, connection.close)]


def restart_postgres(world: World, draw: Draw) -> Later:
    """Every connection breaks, and new ones are refused for a while."""
    postgres = world.stack.postgres
    if postgres is None or not postgres.running:
        raise Missed
    postgres.stop()
    return [(draw.seconds, postgres.start_again)]


def fill_store(world: World, draw: Draw) -> Later:
    """Every write to the artifact store ends with "no space left on device"."""
    armed = world.stack.failpoints / "store.synced"
    ends = time.monotonic() + draw.seconds

    def arm() -> None:
        if time.monotonic() < ends:
            armed.write_text("full")

    arm()
    moments = [number * 0.05 for number in range(1, int(draw.seconds / 0.05))]
    return [*((moment, arm) for moment in moments), (draw.seconds, lambda: armed.unlink(missing_ok=True))]


def damage_newest_checkpoint(world: World, draw: Draw) -> Later:
    """Truncates or flips a byte of the newest accepted checkpoint of a training, whose child then dies."""
    for child in _busy_trainer(world, draw).children():
        with contextlib.suppress(psutil.Error):
            spec = Path(child.cmdline()[-1])
            child.suspend()
            path = _newest_accepted(world, spec)
            if path:
                file = _a_large_file(world.stack.artifacts / "default" / path)
                world.damaged.add(path)
                _damage(file, truncate=draw.place < 0.5)
                child.kill()
                return ()
            child.resume()
    raise Missed


def _newest_accepted(world: World, spec: Path) -> str:
    """The path of the newest checkpoint of the job whose child reads `spec`; "" where none can be told to be."""
    claim, uploading = spec.parent.name, spec.parent / "out" / "checkpoints"
    if any(uploading.glob("*")):
        # One that is newer is on its way.
        return ""
    # Give the last uploaded checkpoint time to be reported, too.
    time.sleep(0.3)
    for job in world.jobs:
        for client in world.clients:
            with contextlib.suppress(ApiError):
                row = client.jobs.get(job.job_id)
                if row.stage != "TRAINING" or claim not in _claims(world.stack, job.job_id):
                    break
                found = client.jobs.checkpoints(job.job_id)
                # With the last step's the training is done, and what is chosen then must not be what was damaged.
                return found[0].path if found and found[0].step < row.progress.total_steps else ""
    return ""


def _claims(stack: Stack, job_id: str) -> set[str]:
    """Claims of a job that a trainer holds now, by its spool."""
    return {record.stem for record in stack.home.glob("*/trainer/spool/*.json") if job_id in record.read_text()}


def _a_large_file(folder: Path) -> Path:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "manifest.json"]
    if not files:
        raise Missed
    return max(files, key=lambda file: file.stat().st_size)


def _damage(file: Path, *, truncate: bool) -> None:
    data = bytearray(file.read_bytes())
    if truncate:
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 1
    file.write_bytes(data)


def arm_failpoint(world: World, draw: Draw) -> Later:
    """Arms a failpoint: the next process that reaches it is killed, stopped, or fails."""
    name, _, action = draw.choice.partition("=")
    (world.stack.failpoints / name).write_text(action)
    return ()


def lose_reply_after_commit(world: World, draw: Draw) -> Later:
    """A gateway dies between COMMIT and everything that follows it: publish, dispatch, reply."""
    (world.stack.failpoints / "decision.committed").write_text("kill")
    return ()


def lose_live_publish(world: World, draw: Draw) -> Later:
    """A COMMIT whose live publish never happens, in a gateway that lives on."""
    (world.stack.failpoints / "decision.committed").write_text("raise")
    return ()


def jump_clock(world: World, draw: Draw) -> Later:
    """The gateways' time of day goes back or ahead by up to two days, and some seconds later it is right again."""
    clock = world.stack.clock
    _set(clock, (draw.place - 0.5) * 4 * 86_400)
    return [(1.0 + draw.seconds, lambda: _set(clock, 0.0))]


def _set(clock: Path, seconds: float) -> None:
    new = clock.with_name("clock.new")
    new.write_text(str(seconds))
    new.replace(clock)


def pause_and_resume(world: World, draw: Draw) -> Later:
    """Pause; Resume some seconds later."""
    job = _any_job(world, draw)
    world.call(draw, lambda client: client.jobs.pause(job.job_id))
    return [(draw.seconds, lambda: world.call(draw, lambda client: client.jobs.resume(job.job_id)))]


def resume_races_paused(world: World, draw: Draw) -> Later:
    """Pause, and Resume while the worker is about to say that it paused."""
    job = _any_job(world, draw)

    def both(client: Client) -> Job:
        client.jobs.pause(job.job_id)
        time.sleep(draw.seconds / 20)
        return client.jobs.resume(job.job_id)

    world.call(draw, both)
    return ()


def cancel(world: World, draw: Draw) -> Later:
    """Cancel, twice."""
    job = draw.of(world.jobs)
    _cancel(world, draw, job)
    return ()


def cancel_races_completion(world: World, draw: Draw) -> Later:
    """Cancel as the last stage is about to be complete."""
    job = draw.of(world.jobs)
    watcher = job.watchers[0]

    def wait_and_ask() -> None:
        with watcher.changed:
            watcher.changed.wait_for(lambda: "EXPORT" in watcher.stages or watcher.ended or bool(watcher.error), 30.0)
        time.sleep(draw.place * 0.4)
        _ask_to_cancel(world, draw, job)

    world.callers.submit(wait_and_ask)
    return ()


def _cancel(world: World, draw: Draw, job: Wanted) -> None:
    world.callers.submit(_ask_to_cancel, world, draw, job)


def _ask_to_cancel(world: World, draw: Draw, job: Wanted) -> None:
    # Until an answer is known, both ends are right.
    earlier, job.cancel = job.cancel, "unknown"
    answer = world.answer(draw, lambda client: client.jobs.cancel(job.job_id))
    if answer == "accepted" and world.answer(draw, lambda client: client.jobs.cancel(job.job_id)) == "refused":
        world.problems.append(f"cancelling {job.job_id} twice was refused")
    job.cancel = "accepted" if "accepted" in (earlier, answer) else answer


def drain_trainer(world: World, draw: Draw) -> Later:
    """DrainTrainer; the process is stopped and started again when it has handed back."""
    proc = _busy_trainer(world, draw)
    try:
        world.stack.drain(proc)
    except grpc.RpcError as error:
        raise Missed from error
    return [(1.0 + draw.seconds, lambda: _terminate(proc))]


def terminate_trainer(world: World, draw: Draw) -> Later:
    """SIGTERM, as a rolling update sends it."""
    _terminate(_busy_trainer(world, draw))
    return ()


def terminate_evaluator_or_exporter(world: World, draw: Draw) -> Later:
    """SIGTERM in the middle of an evaluation or export, as a rolling update sends it."""
    _terminate(_busy(world, draw, "evaluator", "exporter"))
    return ()


def stop_evaluator_or_exporter_past_lease(world: World, draw: Draw) -> Later:
    """SIGSTOP until its claim has expired; it then continues as a worker whose attempt is over."""
    return _stop(_busy(world, draw, "evaluator", "exporter"), LEASE_SECONDS + 3.0 + draw.seconds)


def _terminate(proc: Proc) -> None:
    # The keeper starts it again once it has ended.
    proc.signal(signal.SIGTERM)


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        kill_child,
        stop_child,
        kill_trainer,
        kill_probe,
        kill_evaluator,
        kill_exporter,
        kill_gateway,
        kill_all_gateways,
        kill_nats,
        stop_trainer_past_lease,
        stop_trainer_briefly,
        stop_gateway,
        stop_nats,
        wipe_nats,
        roll_nats_back,
        lock_sqlite,
        restart_postgres,
        fill_store,
        damage_newest_checkpoint,
        arm_failpoint,
        lose_reply_after_commit,
        lose_live_publish,
        jump_clock,
        pause_and_resume,
        resume_races_paused,
        cancel,
        cancel_races_completion,
        drain_trainer,
        terminate_trainer,
        terminate_evaluator_or_exporter,
        stop_evaluator_or_exporter_past_lease,
    )
}
