"""Memory of the processes of a training, compared with the estimate of each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.estimate.architecture import Architecture
from engine.estimate.memory import Setup, estimate_memory
from tests.services.trainer.test_ranks import COMMON, run_ranks


@pytest.mark.long
@pytest.mark.parametrize(("method", "parallelism"), [("lora", "ddp"), ("full", "ddp"), ("full", "fsdp")])
def test_each_of_two_processes_stays_within_its_estimate(
    make_input: Callable[..., Any], tiny_model: Path, tmp_path: Path, method: str, parallelism: str
) -> None:
    """An estimate that is too low is a training that ends when the node's memory does."""
    resources = {"world_size": 2, "parallelism": parallelism}
    child_input = make_input("together", method=method, resources=resources, **COMMON)
    setup = Setup.of(child_input.config, on_gpu=False, length=24)
    estimate = estimate_memory(Architecture.of_folder(tiny_model), setup)
    run = run_ranks(child_input, tmp_path)
    assert run.status == 0, run.lines
    (completed,) = run.of("stage_completed")
    each = completed.training.peak_memory_bytes / 2
    if parallelism == "ddp":
        assert estimate["buffers"] == 4 * completed.training.num_trainable_parameters > 0
    assert each == pytest.approx(estimate.total_bytes, rel=0.2)
    assert each <= estimate.upper_bytes
