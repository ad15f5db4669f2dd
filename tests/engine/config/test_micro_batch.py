"""Micro-batches are halved when memory runs out, and a step keeps its rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config.job import job_config
from engine.config.micro_batch import MAX_ACCUMULATION, halved, shrink
from engine.config.spec_proto import config_to_spec
from finetuneflow.v1.fine_tuning_job_pb2 import Resolution

SIZES = st.integers(1, 1024)


@given(SIZES, SIZES)
def test_halving_keeps_rows_per_step_until_micro_batch_is_one(micro_batch: int, accumulation: int) -> None:
    """A different number of rows per step would be a different training; and halving must end."""
    rows, halvings, size = micro_batch * accumulation, 0, (micro_batch, accumulation)
    while smaller := halved(*size):
        assert smaller[0] * smaller[1] == rows
        assert 1 <= smaller[0] <= size[0] // 2 and smaller[1] <= MAX_ACCUMULATION
        halvings, size = halvings + 1, smaller
    assert halvings <= 10
    assert size[0] == 1 or rows > MAX_ACCUMULATION


@pytest.mark.parametrize(("size", "smaller"), [((8, 4), (4, 8)), ((6, 1), (3, 2)), ((7, 2), (2, 7)), ((5, 1), (1, 5))])
def test_an_odd_micro_batch_gives_the_largest_that_divides_the_step(
    size: tuple[int, int], smaller: tuple[int, int]
) -> None:
    assert halved(*size) == smaller


def test_change_is_reported_once_with_its_reason() -> None:
    """A user who finds other values in the resolved spec than they sent wants to know where they came from."""
    sent = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 1}
    spec = config_to_spec(
        job_config({"base_model": "tiny", "training_data": [{"dataset": "ds_1"}], "hyperparameters": sent})
    )
    resolutions = [Resolution(field="method", value="lora", reason="it fits")]

    first = shrink(spec, resolutions, "attempt 1 failed")
    second = shrink(spec, resolutions, "attempt 2 failed")

    assert first == ["per_device_train_batch_size = 2", "gradient_accumulation_steps = 4"]
    assert second == ["per_device_train_batch_size = 1", "gradient_accumulation_steps = 8"]
    assert [(r.field.removeprefix("hyperparameters."), r.value, r.reason) for r in resolutions] == [
        ("method", "lora", "it fits"),
        ("per_device_train_batch_size", "1", "attempt 2 failed"),
        ("gradient_accumulation_steps", "8", "attempt 2 failed"),
    ]
    assert shrink(spec, resolutions, "attempt 3 failed") == []
    assert len(resolutions) == 3
