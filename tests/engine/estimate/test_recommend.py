"""Recommendation of the method and the smallest change that fits, and the decision matrix."""

import itertools
from typing import Any

import pytest

from engine.config.job import JobConfig, job_config
from engine.estimate.known_architectures import known
from engine.estimate.machine import Machine, gpu_machine
from engine.estimate.matrix import BANDS, COLUMNS, matrix
from engine.estimate.memory import GIB
from engine.estimate.recommend import RESERVE, TIGHT, fits, plan, recommend, smallest_free
from engine.estimate.seed_formula import recommend_method
from finetuneflow.v1.hardware_pb2 import Gpu, Hardware


def gpu(gib: float, **more: Any) -> Machine:
    return gpu_machine("GPU", int(gib * GIB), **more)


def config(**spec: Any) -> JobConfig:
    return job_config({"base_model": "m", "training_data": [{"dataset": "d"}], **spec})


def test_recommends_lora_if_it_fits_else_qlora_else_nothing() -> None:
    """A recommendation that does not fit costs hours; one that is too cautious costs quality."""
    eight = known("llama-3.1-8b")
    assert (recommend(eight, gpu(80), config()).method, recommend(eight, gpu(24), config()).method) == ("lora", "qlora")
    none = recommend(eight, gpu(6), config())
    assert none.method is None
    assert none.plan.verdict == "impossible"
    assert "6.0 GiB are free" in none.reason
    assert "smaller base model" in none.alternatives[-1]
    assert recommend(eight, gpu(24, quantises=False), config()).plan.method == "lora"


def test_no_alternative_needs_more_memory() -> None:
    """For small models quantisation saves less memory than dequantising the weights takes."""
    for name in ("smollm2-135m", "llama-3.1-8b"):
        found = recommend(known(name), gpu(80), config())
        other = plan(known(name), gpu(80), config(), "qlora")
        saves = other.memory.upper_bytes < found.plan.memory.upper_bytes
        assert any("QLoRA" in line for line in found.alternatives) == saves


def test_a_recommended_plan_stays_below_the_free_memory() -> None:
    """The upper bound fits with a reserve, for every model and GPU."""
    for name in ("llama-3.2-1b", "gemma-2-2b", "qwen2.5-7b", "phi-4", "qwen3-30b-a3b"):
        for gib in (6, 8, 12, 16, 24, 40, 48, 80):
            found = recommend(known(name), gpu(gib), config())
            if found.method is not None:
                assert found.plan.memory.upper_bytes <= gib * GIB * (1 - RESERVE)


def test_tight_plan_uses_the_first_sufficient_reduction() -> None:
    """Smaller micro-batches come before truncation, and a step keeps its rows as long as possible."""
    architecture = known("llama-3.2-3b")
    reduced, whole = smallest_free(architecture, gpu(8), config(method="qlora"), "qlora")
    between = recommend(architecture, gpu((whole - 1) / GIB), config(method="qlora"))
    assert between.plan.verdict == "tight"
    changes = {change.field.removeprefix("hyperparameters."): change.after for change in between.plan.adjustments}
    assert changes["per_device_train_batch_size"] * changes["gradient_accumulation_steps"] == 16
    assert "max_length" not in changes
    last = recommend(architecture, gpu((reduced + 1) / GIB), config(method="qlora"))
    assert {c.field.removeprefix("hyperparameters."): c.after for c in last.plan.adjustments} == {
        name: value for name, value in TIGHT.items() if name != "gradient_checkpointing"
    }
    assert any("truncated" in warning for warning in last.warnings)
    assert any("8 rows instead of 16" in warning for warning in last.warnings)
    assert recommend(architecture, gpu((reduced - GIB / 4) / GIB), config(method="qlora")).method is None


def test_applied_changes_give_the_shown_estimate() -> None:
    """Applied to the job, the changes give the estimate that was shown."""
    found = recommend(known("llama-3.1-8b"), gpu(16), config())
    assert found.plan.verdict == "tight"
    hyper = config().hyperparameters.model_copy(
        update={change.field.rpartition(".")[2]: change.after for change in found.plan.adjustments}
    )
    changed = config(method=found.method).model_copy(update={"hyperparameters": hyper})
    again = recommend(known("llama-3.1-8b"), gpu(16), changed)
    assert (again.method, again.plan.verdict) == (found.method, "comfortable")
    assert again.plan.memory == found.plan.memory


def test_a_requested_method_is_kept() -> None:
    found = recommend(known("llama-3.1-8b"), gpu(48), config(method="full"))
    assert found.method is None
    assert any(line.startswith("LoRA") for line in found.alternatives)
    assert recommend(known("smollm2-135m"), gpu(24), config(method="full")).method == "full"


def test_a_data_set_of_short_rows_needs_less() -> None:
    """Memory depends on the longest row, not on max_length."""
    short = recommend(known("llama-3.1-8b"), gpu(24), config(), length=256)
    assert (short.method, short.plan.verdict) == ("lora", "comfortable")


def test_a_cpu_and_an_older_gpu() -> None:
    hardware = Hardware(cpu_model="A CPU", cpu_cores=8, memory_available_bytes=16 * GIB, packages={"bitsandbytes": "1"})
    machine = Machine.of(hardware)
    assert (machine.on_gpu, machine.name) == (False, "A CPU × 8")
    found = recommend(known("smollm2-135m"), machine, config())
    assert found.method == "lora"
    assert found.plan.setup.precision == "fp32"
    assert any("trains on the CPU" in warning for warning in found.warnings)
    hardware.gpus.append(Gpu(name="Tesla T4", memory_free_bytes=15 * GIB, compute_capability="7.5", bf16=False))
    hardware.cuda_available = True
    old = recommend(known("smollm2-135m"), Machine.of(hardware), config())
    assert old.plan.setup.precision == "fp16"
    assert any("fp16" in warning for warning in old.warnings)
    assert Machine.of(hardware, gpus=0).on_gpu is False


def test_a_cpu_quantises_only_if_nothing_else_fits() -> None:
    """Quantised weights only cost time on a CPU: more free memory must never lead to a slower recommendation."""
    hardware = Hardware(cpu_model="A CPU", cpu_cores=8, packages={"bitsandbytes": "1"})
    methods = []
    for name in ("smollm2-135m", "llama-3.1-8b"):
        for tenths in range(10, 1000, 7):
            machine = Machine.of(hardware, free_bytes=tenths * GIB // 10)
            found = recommend(known(name), machine, config())
            methods.append(found.method)
            if found.method == "qlora":
                assert plan(known(name), machine, config(), "lora").verdict == "impossible"
    assert set(methods) == {None, "lora", "qlora"}


def test_the_matrix_follows_from_the_estimates_and_explains_differences() -> None:
    """Every cell has the same verdict as a job, and every difference from the seed states figures."""
    rows = matrix()
    assert [len(row) for row in rows] == [len(COLUMNS)] * len(BANDS)
    for row in rows:
        for cell in row:
            machine = gpu(cell.free_bytes / GIB)
            assert (cell.method is None) == (not fits(cell.recommendation.plan.memory, machine))
            same = (cell.method, cell.verdict) == (cell.seed_method, cell.seed_verdict)
            assert bool(cell.difference) != same
            assert same or ("GiB" in cell.difference and cell.difference.count(".") >= 2)
    # More memory is never worse.
    order = {"impossible": 0, "tight": 1, "comfortable": 2}
    for column in range(len(COLUMNS)):
        for smaller, larger in itertools.pairwise(rows):
            before, after = smaller[column], larger[column]
            if before.method == after.method:
                assert order[before.verdict] <= order[after.verdict]
            assert before.method is None or after.method is not None
    # A cell where the seed recommends a method whose weights alone do not fit.
    assert rows[4][1].seed_method == "lora"
    assert rows[4][1].method == "qlora"
    assert rows[5][3].method is None


def test_reductions_end_at_the_seeds() -> None:
    found = plan(known("llama-3.1-70b"), gpu(24), config(), "qlora")
    assert found.verdict == "impossible"
    assert (found.setup.rows, found.setup.length, found.setup.accumulation) == (1, 1024, 8)


# vram, billions, cuda, bitsandbytes → method, can train, GB
@pytest.mark.parametrize(
    ("given", "method", "usage"),
    [
        ((24, 70, False, True), None, None),
        ((5.9, 1, True, True), None, None),
        ((8, 7, True, True), "qlora", 5.9),
        ((8, 13, True, True), "qlora", 11.0),
        ((16, 3, True, True), "lora", 8.3),
        ((16, 8, True, True), "qlora", 6.8),
        ((16, 8, True, False), "lora", 22.1),
        ((24, 70, True, True), "lora", 193.2),
    ],
)
def test_seed_formula_returns_the_seeds_recommendations(given: Any, method: str | None, usage: float | None) -> None:
    """It is shown beside the estimate unchanged, including its errors: LoRA for 70B on 24 GB."""
    found = recommend_method(*given)
    assert (found.method, found.can_train, found.estimated_vram_usage_gb) == (method, method is not None, usage)
    assert found.reason
    assert bool(found.warnings) == (given == (8, 13, True, True))
