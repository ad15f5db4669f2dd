"""With faults of every kind at random times, users get the results of a run without faults."""

import json
import re
from pathlib import Path

import pytest

from tests.chaos.faults import AT_CREATION, FAILPOINTS
from tests.chaos.real import Real
from tests.chaos.run import run_schedule
from tests.chaos.schedule import draw_schedule
from tests.servers.postgres import binaries


def test_same_seed_gives_same_schedule() -> None:
    """A failure can be reproduced from its seed."""
    assert draw_schedule(7) == draw_schedule(7)
    assert str(draw_schedule(7)) == str(draw_schedule(7))
    assert draw_schedule(7).steps != draw_schedule(8).steps


def test_every_failpoint_of_the_product_is_used() -> None:
    """Every failpoint must be drawn by some schedule, but for those of the delivery process, which no job waits for."""
    root = Path(__file__).parents[2]
    files = [file for part in ("chassis", "gateway") for file in (root / part).rglob("*.py")]
    sources = [file.read_text() for file in files if "deliveries" not in file.parts]
    assert set(re.findall(r'failpoint\("([^"]+)"\)', "".join(sources))) == {*FAILPOINTS, *AT_CREATION}


@pytest.mark.long
@pytest.mark.parametrize("seed", [26, 39])
def test_no_violations_under_faults_on_sqlite(seed: int, tmp_path: Path) -> None:
    result = run_schedule(draw_schedule(seed, jobs=2, faults=5), tmp_path / "home")
    assert not result.findings.violations, result.report()


@pytest.mark.long
@pytest.mark.skipif(binaries() is None, reason="PostgreSQL's server is not installed")
def test_no_violations_under_faults_with_two_gateways_on_postgresql(tmp_path: Path) -> None:
    result = run_schedule(draw_schedule(30, postgres=True, jobs=2, faults=5), tmp_path / "home")
    assert not result.findings.violations, result.report()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    return Real.prepare(tmp_path_factory.mktemp("real"))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["kill_child", "kill_trainer", "pause_and_resume", ""])
def test_real_training_under_faults_gives_same_adapter(real: Real, kind: str, tmp_path: Path) -> None:
    """After faults at random steps the adapter is that of a run without faults."""
    schedule = draw_schedule(31, real=True, jobs=1, faults=5, only=kind)
    result = run_schedule(schedule, tmp_path / "home", model=real.model, rows=real.rows, reference=real.reference)
    assert not result.findings.violations, result.report()
    if "cancel" not in json.dumps([step.fault for step in schedule.steps]):
        assert result.findings.counts["results identical to an unfaulted run"] == 1
