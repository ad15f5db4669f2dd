"""The checker finds each kind of violation in a real run's evidence that was modified in one place."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from finetuneflow.v1.event_pb2 import Event
from tests.chaos.checker import Evidence, Seen, check
from tests.chaos.faults import Draw
from tests.chaos.history import read_histories
from tests.chaos.run import run_schedule
from tests.chaos.schedule import Schedule, Step
from tests.chaos.stack import Stack

# `make test-long` also runs the schedules that are checked.
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evidence]:
    """Runs one job whose training child was killed once, without violations."""
    home = tmp_path_factory.mktemp("chaos") / "home"
    steps = tuple(Step(at, "kill_child", Draw(random.Random(at).random(), 0.5)) for at in (2.5,))  # noqa: S311
    result = run_schedule(Schedule(1, False, False, 1, 1, steps), home)
    assert not result.findings.violations, result.report()
    assert result.injected == {"kill_child": 1}
    assert result.findings.counts["results identical to an unfaulted run"] == 1
    assert result.evidence is not None
    return home, result.evidence


@pytest.fixture
def copy(run: tuple[Path, Evidence], tmp_path: Path) -> Iterator[tuple[sqlite3.Connection, Callable[[], Evidence]]]:
    """The run's database and artifact store to be broken, and the evidence they then give."""
    home, evidence = run
    shutil.copytree(home / "artifacts", tmp_path / "artifacts")
    database = sqlite3.connect(tmp_path / "copy.sqlite")
    with sqlite3.connect(home / "gateway.sqlite") as original:
        original.backup(database)
    original.close()

    def broken() -> Evidence:
        database.commit()
        histories = read_histories(f"sqlite:///{tmp_path / 'copy.sqlite'}")
        return replace(evidence, histories=histories, store=tmp_path / "artifacts")

    yield database, broken
    database.close()


def kinds(evidence: Evidence) -> set[str]:
    return {violation.partition(":")[0] for violation in check(evidence).violations}


def rewrite(database: sqlite3.Connection, sequence: int, change: Callable[[Event], None]) -> None:
    """Changes an accepted event in SQL."""
    (data,) = database.execute("SELECT event FROM events WHERE sequence = ?", (sequence,)).fetchone()
    event = Event.FromString(data)
    change(event)
    database.execute("UPDATE events SET event = ? WHERE sequence = ?", (event.SerializeToString(), sequence))


def last(database: sqlite3.Connection, kind: str) -> int:
    (found,) = database.execute("SELECT max(sequence) FROM events WHERE kind = ?", (kind,)).fetchone()
    return int(found)


def test_unmodified_run_has_no_violations(copy: tuple[sqlite3.Connection, Callable[[], Evidence]]) -> None:
    assert kinds(copy[1]()) == set()


SQL = {
    "an event is gone": ("DELETE FROM events WHERE sequence = 9", "loss"),
    "the newest event is gone": ("DELETE FROM events WHERE sequence = (SELECT max(sequence) FROM events)", "loss"),
    "an acceptance was not counted": ("UPDATE attempts SET next_ordinal = next_ordinal + 1", "loss"),
    "an attempt is still open": ("UPDATE attempts SET state = 'CLAIMED' WHERE stage = 'STAGE_EXPORT'", "attempts"),
    "an attempt is missing": ("DELETE FROM attempts WHERE attempt = 1 AND stage = 'STAGE_TRAINING'", "attempts"),
    "a failure was not counted": ("UPDATE attempts SET counted = 0", "attempts"),
    "a stage was completed twice": ("UPDATE attempts SET outcome = 'COMPLETED'", "attempts"),
    "two attempts share a claim": ("UPDATE attempts SET claim_id = 'same'", "attempts"),
    "a job has not ended": ("UPDATE work SET state = 'JOB_STATE_RUNNING'", "ending"),
    "nobody asked for the cancellation": ("UPDATE work SET state = 'JOB_STATE_CANCELLED'", "ending"),
    "a job was given up early": ("UPDATE work SET state = 'JOB_STATE_FAILED', fault = 'FAULT_SYSTEM_ERROR'", "ending"),
    "the newest checkpoint was pruned": ("UPDATE checkpoints SET pruned = 1", "retention"),
    "nothing was ever pruned": ("UPDATE checkpoints SET pruned = 0", "retention"),
    "an artifact has another hash": ("UPDATE artifacts SET sha256 = 'else'", "store"),
}


@pytest.mark.parametrize("name", SQL)
def test_modified_rows_are_found(copy: tuple[sqlite3.Connection, Callable[[], Evidence]], name: str) -> None:
    statement, kind = SQL[name]
    database, broken = copy
    assert database.execute(statement).rowcount
    assert kind in kinds(broken())


def test_event_of_expired_attempt_is_found(copy: tuple[sqlite3.Connection, Callable[[], Evidence]]) -> None:
    """Late reports of an expired attempt lie among the events of its successor."""
    database, broken = copy

    def set_first_attempt(event: Event) -> None:
        assert event.attempt == 2
        event.attempt = 1

    rewrite(database, last(database, "log"), set_first_attempt)
    assert "stale write" in kinds(broken())


def test_ending_from_another_node_is_found(copy: tuple[sqlite3.Connection, Callable[[], Evidence]]) -> None:
    database, broken = copy
    rewrite(database, last(database, "stage_completed"), lambda event: setattr(event, "source", "trainer-9"))
    assert "stale write" in kinds(broken())


@pytest.mark.parametrize(("by", "kind"), [(-1, "duplicate"), (1, "loss")])
def test_wrong_ordinal_is_found(copy: tuple[sqlite3.Connection, Callable[[], Evidence]], by: int, kind: str) -> None:
    database, broken = copy
    rewrite(database, last(database, "log"), lambda event: setattr(event, "ordinal", event.ordinal + by))
    assert kind in kinds(broken())


def test_second_terminal_state_is_found(copy: tuple[sqlite3.Connection, Callable[[], Evidence]]) -> None:
    database, broken = copy
    end = last(database, "state_changed")
    columns = "work_id, tenant, kind, severity, event"
    database.execute(
        f"INSERT INTO events (sequence, {columns}) SELECT sequence + 1, {columns} FROM events WHERE sequence = ?",  # noqa: S608
        (end,),
    )
    rewrite(database, end + 1, lambda event: setattr(event, "sequence", end + 1))
    database.execute("UPDATE work SET last_sequence = last_sequence + 1")
    assert "ending" in kinds(broken())


def test_resume_from_wrong_step_is_found(
    copy: tuple[sqlite3.Connection, Callable[[], Evidence]],
) -> None:
    database, broken = copy

    def decrement_step(event: Event) -> None:
        event.restored.checkpoint_step -= 8
        event.restored.first_step -= 8

    rewrite(database, last(database, "restored"), decrement_step)
    assert "resume" in kinds(broken())


def test_skipped_step_is_found(copy: tuple[sqlite3.Connection, Callable[[], Evidence]]) -> None:
    database, broken = copy

    def increment_step(event: Event) -> None:
        event.log.step += 1

    rewrite(database, last(database, "log"), increment_step)
    assert "resume" in kinds(broken())


@pytest.mark.parametrize("pattern", ["*/jobs/*/export/*/*.zip", "*/jobs/*/training/*/checkpoints/*/weights.bin"])
@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_damaged_files_are_found(
    run: tuple[Path, Evidence],
    copy: tuple[sqlite3.Connection, Callable[[], Evidence]],
    tmp_path: Path,
    pattern: str,
    how: str,
) -> None:
    file = sorted((tmp_path / "artifacts").glob(pattern))[-1]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(data if how == "flipped" else data[: len(data) // 2])
    found = kinds(copy[1]())
    assert "store" in found
    assert ("result" in found) == file.name.endswith(".zip")


def test_result_that_differs_from_run_without_faults_is_found(run: tuple[Path, Evidence]) -> None:
    evidence = run[1]
    expected = {job: replace(known, reference="another") for job, known in evidence.expected.items()}
    assert kinds(replace(evidence, expected=expected)) == {"result"}


def test_incomplete_folder_at_final_path_is_found(
    copy: tuple[sqlite3.Connection, Callable[[], Evidence]], tmp_path: Path
) -> None:
    (job,) = (tmp_path / "artifacts" / "default" / "jobs").iterdir()
    folder = job / "training" / "1" / "checkpoints" / "step-999"
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"the first half")
    assert "store" in kinds(copy[1]())


def test_ignored_cancellation_is_found(run: tuple[Path, Evidence]) -> None:
    evidence = run[1]
    expected = {job: replace(known, cancel="accepted") for job, known in evidence.expected.items()}
    assert kinds(replace(evidence, expected=expected)) == {"ending"}


def test_missing_job_is_found(run: tuple[Path, Evidence]) -> None:
    """Foreign keys prevent the deletion of a job's row alone, so the whole history is removed."""
    assert kinds(replace(run[1], histories={})) == {"loss"}


def test_unexpected_job_is_found(run: tuple[Path, Evidence]) -> None:
    """A create that was sent twice must not make two jobs."""
    evidence = run[1]
    (history,) = evidence.histories.values()
    assert kinds(replace(evidence, histories={**evidence.histories, "ftjob_second": history})) == {"duplicate"}


def test_wrong_events_of_a_watcher_are_found(run: tuple[Path, Evidence]) -> None:
    evidence = run[1]
    whole = evidence.watchers[0]

    def seen(*events: tuple[int, bytes], error: str = "", ended: bool = True) -> set[str]:
        return kinds(replace(evidence, watchers=[Seen("one", whole.work_id, events, error, ended)]))

    head, fourth, fifth, rest = whole.events[:3], whole.events[3], whole.events[4], whole.events[5:]
    assert seen(*head, fourth, fifth, *rest) == set()
    assert seen(*head, fourth, fourth, fifth, *rest) == {"duplicate"}
    assert seen(*head, fifth, *rest) == {"loss"}
    assert seen(*head, fifth, fourth, *rest) == {"reorder"}
    assert seen(*whole.events[:-1]) == {"loss"}
    assert seen(*head, (4, fifth[1]), fifth, *rest) == {"loss"}
    assert seen(*whole.events, error="Internal: incident 1") == {"watcher failed"}
    assert seen(*whole.events, ended=False) == {"watcher failed"}


def test_orphan_process_is_found_by_home_of_its_stack(run: tuple[Path, Evidence], tmp_path: Path) -> None:
    """A child that outlives its supervisor would continue to use the GPU."""
    stack = Stack(tmp_path / "home")
    assert stack.orphans() == []
    wait = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", wait, str(stack.home / "input.json")], stdin=subprocess.PIPE) as left:
        (orphan,) = stack.orphans()
        assert orphan.startswith(f"{left.pid} ")
        assert [child.pid for child in stack.children()] == [left.pid]
        left.kill()
    assert kinds(replace(run[1], orphans=[orphan])) == {"orphan"}
