"""Whole trainings, each in a fresh process, against their estimates: a few of `make bench-estimates`."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.estimates import AIMS, compare, run
from benchmarks.training_memory import Configuration

SMALL = Configuration(rows=2, length=128)


@pytest.mark.long
@pytest.mark.parametrize(
    "configuration",
    [
        SMALL,
        replace(SMALL, family="qwen3", checkpointing=True),
        replace(SMALL, family="gemma3", method="full", precision="bf16"),
        replace(SMALL, family="phi3", method="qlora"),
        replace(SMALL, family="smollm2-135m", method="qlora", precision="bf16"),
        replace(SMALL, family="gemma2", method="full", optimizer="adafactor"),
    ],
    ids=lambda configuration: f"{configuration.family}-{configuration.method}-{configuration.precision}",
)
@pytest.mark.timeout(1200)
def test_measured_memory_is_within_the_estimate(configuration: Configuration, tmp_path: Path) -> None:
    """An estimate that is too low is a job that dies after an hour."""
    outcome = compare(configuration, run(configuration, tmp_path))
    for quantity, aim in AIMS.items():
        assert abs(outcome.error(quantity)) <= aim, (quantity, outcome)
    assert outcome.measured["peak"] <= outcome.upper_bytes
