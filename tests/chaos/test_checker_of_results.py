"""The checker finds violations in separately created evaluations and exports."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.checker import Evidence, Seen, check
from tests.chaos.history import WorkHistory, read_histories
from tests.chaos.results import Order
from tests.chaos.run import run_schedule
from tests.chaos.schedule import Schedule

# `make test-long` also runs the schedules that are checked.
pytestmark = pytest.mark.long

ORDERS = (
    Order(0, "export", ended=False, twice=True),
    Order(0, "evaluation", ended=True, twice=False),
    Order(0, "export", ended=True, twice=False, verb="delete"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evidence]:
    """Runs one job, an export and an evaluation of its model, and an export that is deleted, without violations."""
    home = tmp_path_factory.mktemp("chaos") / "home"
    result = run_schedule(Schedule(1, False, False, 1, 1, (), orders=ORDERS), home)
    assert not result.findings.violations, result.report()
    counts = result.findings.counts
    assert counts["evaluations and exports"] == 2
    assert counts["deleted"] == counts["exports identical to an unfaulted run"] == 1
    assert counts["evaluations identical to an unfaulted run"] == 1
    assert result.evidence is not None
    return home, result.evidence


@pytest.fixture
def histories(run: tuple[Path, Evidence]) -> dict[str, WorkHistory]:
    """The run's rows, to be changed."""
    return read_histories(f"sqlite:///{run[0] / 'gateway.sqlite'}")


def violations(evidence: Evidence) -> list[str]:
    return check(evidence).violations


def history_of_kind(kind: str, histories: dict[str, WorkHistory]) -> WorkHistory:
    (found,) = (history for history in histories.values() if history.work.kind == kind)
    return found


def lose_an_event(history: WorkHistory) -> None:
    history.rows = [row for row in history.rows if row.sequence != 3]


def forget_the_end(history: WorkHistory) -> None:
    history.work.state = "JOB_STATE_RUNNING"


def cancel_without_request(history: WorkHistory) -> None:
    history.work.state = "JOB_STATE_CANCELLED"


def leave_an_attempt_open(history: WorkHistory) -> None:
    history.attempts[-1].state = "CLAIMED"


def count_a_failure_twice(history: WorkHistory) -> None:
    history.work.failed_attempts += 1


def lose_the_result(history: WorkHistory) -> None:
    history.results[0].result = None


def leave_two_results(history: WorkHistory) -> None:
    history.results = [*history.results, *history.results]


BROKEN: dict[str, tuple[Callable[[WorkHistory], None], str]] = {
    "an event is gone": (lose_an_event, "loss"),
    "it has not ended": (forget_the_end, "ending"),
    "nobody asked for the cancellation": (cancel_without_request, "ending"),
    "an attempt is still open": (leave_an_attempt_open, "attempts"),
    "a failure was counted twice": (count_a_failure_twice, "attempts"),
    "it has no result": (lose_the_result, "result"),
    "it has two results": (leave_two_results, "result"),
}


@pytest.mark.parametrize("kind", ["evaluation", "export"])
@pytest.mark.parametrize("name", BROKEN)
def test_modified_rows_are_found(
    run: tuple[Path, Evidence], histories: dict[str, WorkHistory], kind: str, name: str
) -> None:
    change, expected = BROKEN[name]
    history = history_of_kind(kind, histories)
    change(history)
    found = violations(replace(run[1], histories=histories))
    assert any(each.startswith(f"{expected}: ") and history.work.id in each for each in found), found


def test_package_that_differs_from_run_without_faults_is_found(
    run: tuple[Path, Evidence], histories: dict[str, WorkHistory]
) -> None:
    """An export packs the trained checkpoint, not that of another step."""
    export = history_of_kind("export", histories).work.id
    expected = {**run[1].expected, export: replace(run[1].expected[export], reference="another")}
    (found,) = violations(replace(run[1], expected=expected))
    assert found.startswith(f"result: {export}: the result is ")


def test_loss_that_differs_from_run_without_faults_is_found(
    run: tuple[Path, Evidence], histories: dict[str, WorkHistory]
) -> None:
    evaluation = history_of_kind("evaluation", histories).work.id
    expected = {**run[1].expected, evaluation: replace(run[1].expected[evaluation], tuned_loss=0.5)}
    (found,) = violations(replace(run[1], expected=expected))
    assert found.startswith(f"result: {evaluation}: tuned loss ")


def test_damaged_package_is_found(
    run: tuple[Path, Evidence], histories: dict[str, WorkHistory], tmp_path: Path
) -> None:
    shutil.copytree(run[0] / "artifacts", tmp_path / "artifacts")
    export = history_of_kind("export", histories).work.id
    (package,) = (tmp_path / "artifacts" / "default" / "jobs" / export).rglob("*.zip")
    package.write_bytes(package.read_bytes()[:-1])
    found = violations(replace(run[1], store=tmp_path / "artifacts"))
    assert {each.partition(":")[0] for each in found} == {"store", "result"}


def test_unexpected_export_is_found(run: tuple[Path, Evidence], histories: dict[str, WorkHistory]) -> None:
    """A create that was sent twice with one request_id must not make two exports."""
    second = {**histories, "ex_second": history_of_kind("export", histories)}
    (found,) = violations(replace(run[1], histories=second))
    assert found.startswith("duplicate: ex_second ")


def test_undone_and_unrequested_deletions_are_found(
    run: tuple[Path, Evidence], histories: dict[str, WorkHistory]
) -> None:
    """An accepted deletion is carried out, and nothing else is deleted."""
    (deleted,) = (id_ for id_, expected in run[1].expected.items() if expected.deleted == "accepted")
    there = {**histories, deleted: history_of_kind("export", histories)}
    assert f"ending: {deleted} is in SQL although its deletion was accepted" in violations(
        replace(run[1], histories=there)
    )
    expected = {**run[1].expected, deleted: replace(run[1].expected[deleted], deleted="refused")}
    assert f"loss: {deleted} is not in SQL" in violations(replace(run[1], expected=expected))


def test_wrong_events_of_a_watcher_of_a_deleted_export_are_found(run: tuple[Path, Evidence]) -> None:
    (deleted,) = (id_ for id_, expected in run[1].expected.items() if expected.deleted == "accepted")
    whole = next(watcher for watcher in run[1].watchers if watcher.work_id == deleted)

    def kinds(*events: tuple[int, bytes]) -> set[str]:
        evidence = replace(run[1], watchers=[Seen("one", deleted, events)])
        return {each.partition(":")[0] for each in violations(evidence)}

    first, second, *rest = whole.events
    assert kinds(first, second, *rest) == set()
    assert kinds(second, *rest) == {"loss"}
    assert kinds(first, second, second, *rest) == {"duplicate"}
    assert kinds(second, first, *rest) == {"reorder"}
    assert kinds(*whole.events[:-1]) == {"loss"}
