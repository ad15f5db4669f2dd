"""Artifacts that somebody made to do harm: each is refused with its reason, within its limits of time and memory.

The checks run in child processes that are watched for files opened outside, processes and connections.
"""

import pytest

from tests.hostile.batches import results_of
from tests.hostile.checking import Result
from tests.hostile.corpus import FAMILIES, all_artifacts, artifact_of

# `make test` runs one in forty, to save half a minute; `make test-long` runs all others.
NAMES = [
    pytest.param(name, marks=[pytest.mark.long] if artifact.long or number % 40 else [])
    for number, (name, (_, artifact)) in enumerate(all_artifacts().items())
]


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Result]:
    """What became of the artifacts whose tests run."""
    wanted = [
        str(item.callspec.params["name"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and "results" in item.fixturenames and hasattr(item, "callspec")
    ]
    return results_of(wanted, tmp_path_factory.mktemp("hostile"))


def test_corpus_has_at_least_300_artifacts_of_every_kind() -> None:
    assert len(all_artifacts()) >= 300
    assert len(FAMILIES) >= 12


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_artifact_is_refused_with_its_reason_and_does_nothing_else(name: str, results: dict[str, Result]) -> None:
    artifact, result = artifact_of(name), results[name]
    assert result.outcome == artifact.expected, result.message
    assert not result.forbidden, "it opened, started or connected what it must not"
    # Processor time, which a busy machine stretches: the limits are about artifacts that cost minutes.
    assert result.seconds <= 5 * artifact.seconds
    assert result.mib <= artifact.mib
