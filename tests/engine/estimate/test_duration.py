"""Durations follow from measured speeds, with their uncertainty, and costs from durations."""

from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import JobError
from engine.estimate.architecture import Architecture
from engine.estimate.cost import PriceTable, cost
from engine.estimate.duration import (
    Calibration,
    Interval,
    Observation,
    Work,
    estimate_duration,
    evaluation_flops_per_token,
    flops_per_token,
    predict_speed,
    work_per_token,
)
from engine.estimate.known_architectures import CONFIGS, known
from engine.estimate.machine import Machine, gpu_machine
from engine.estimate.memory import GIB, Precision, Setup
from engine.estimate.saved_activations import Method
from finetuneflow.v1.hardware_pb2 import Hardware

ARCHITECTURE = known("llama-3.1-8b")
SETUP = Setup("lora", "bf16", True, 4, 512, False, "adamw_torch")
A100 = gpu_machine("NVIDIA A100-SXM4-80GB", 80 * GIB)


def observed(tokens_per_second: float, model: str = "llama-3.1-8b", method: str = "lora") -> Observation:
    architecture = known(model)
    setup = replace(SETUP, method=method)
    flops = flops_per_token(architecture, setup)
    return Observation(A100.name, setup.method, architecture.num_parameters, flops, tokens_per_second)


def test_flops_are_six_per_weight_and_four_per_frozen_weight() -> None:
    """6N for every weight, 4N with frozen ones; recomputation adds a forward pass."""
    short = replace(SETUP, length=1)
    n = ARCHITECTURE.num_parameters
    assert flops_per_token(ARCHITECTURE, replace(short, method="full")) == pytest.approx(6 * n, rel=0.05)
    assert flops_per_token(ARCHITECTURE, short) == pytest.approx(4 * n, rel=0.06)
    again = flops_per_token(ARCHITECTURE, replace(short, checkpointing=True))
    assert again - flops_per_token(ARCHITECTURE, short) == pytest.approx(2 * n, rel=0.07)
    assert evaluation_flops_per_token(ARCHITECTURE, short) == pytest.approx(2 * n, rel=0.08)
    mixture = known("qwen3-30b-a3b")
    assert flops_per_token(mixture, replace(short, method="full")) < 6 * mixture.num_parameters / 5


def test_unmeasured_hardware_gets_a_wide_range_and_a_note() -> None:
    found = estimate_duration(ARCHITECTURE, SETUP, A100, Work(1_000_000))
    assert found.seconds.low < found.seconds.likely < found.seconds.high
    assert found.speed.num_observations == 0
    assert "no training of a model of about this size has been measured" in found.speed.basis
    unlisted = estimate_duration(ARCHITECTURE, SETUP, gpu_machine("Some GPU", 80 * GIB), Work(1_000_000))
    assert unlisted.seconds.high / unlisted.seconds.low > found.seconds.high / found.seconds.low


def test_one_measured_training_replaces_the_assumption() -> None:
    """The estimate for the same job is the measured value, and its range narrows with each further training."""
    calibration = Calibration()
    calibration.observe(observed(2000))
    found = estimate_duration(ARCHITECTURE, SETUP, A100, Work(1_000_000), calibration)
    assert found.seconds.likely == pytest.approx(500)
    assert found.speed.num_observations == 1
    for _ in range(8):
        calibration.observe(observed(2000))
    more = estimate_duration(ARCHITECTURE, SETUP, A100, Work(1_000_000), calibration)
    assert more.seconds.high / more.seconds.low < found.seconds.high / found.seconds.low


def test_other_sizes_and_methods_are_inferred_with_a_wider_range() -> None:
    calibration = Calibration([observed(2000)])
    near = estimate_duration(ARCHITECTURE, SETUP, A100, Work(1e6), calibration)
    far = estimate_duration(known("llama-3.2-1b"), SETUP, A100, Work(1e6), calibration)
    assert far.seconds.likely < near.seconds.likely / 4
    assert far.seconds.high / far.seconds.low > near.seconds.high / near.seconds.low
    other = estimate_duration(ARCHITECTURE, replace(SETUP, method="full"), A100, Work(1e6), calibration)
    assert "another method" in other.speed.basis
    elsewhere = gpu_machine("NVIDIA L4", 24 * GIB)
    assert calibration.predict(elsewhere, "lora", 8_000_000_000, 1e10).num_observations == 0


def test_a_trial_with_a_tiny_model_says_nothing_about_a_large_one() -> None:
    """It reaches a small part of the peak only: by its speed, a large model would take years."""
    tiny = replace(observed(200_000), num_parameters=3_000_000, flops_per_token=2e7)
    found = estimate_duration(ARCHITECTURE, SETUP, A100, Work(1e6), Calibration([tiny])).speed
    assert found == estimate_duration(ARCHITECTURE, SETUP, A100, Work(1e6)).speed
    both = estimate_duration(ARCHITECTURE, SETUP, A100, Work(1e6), Calibration([tiny, observed(2000)])).speed
    assert (both.num_observations, both.tokens_per_second.likely) == (1, pytest.approx(2000))


def test_a_training_without_a_speed_is_ignored() -> None:
    calibration = Calibration([replace(observed(2000), tokens_per_second=0.0)])
    assert estimate_duration(ARCHITECTURE, SETUP, A100, Work(1e6), calibration).speed.num_observations == 0


def test_evaluations_add_to_the_duration() -> None:
    none = estimate_duration(ARCHITECTURE, SETUP, A100, Work(1e6)).seconds.likely
    some = estimate_duration(ARCHITECTURE, SETUP, A100, Work(1e6, 1e6)).seconds.likely
    assert 1.3 < some / none < 1.7


def test_the_default_prices_are_the_seeds() -> None:
    """5 days on an A100 of 80 GB for 180, on one of 40 GB for 120."""
    table = PriceTable.read()
    days = Interval(4 * 86400, 5 * 86400, 6 * 86400)
    sizes = {80: 180, 40: 120}
    for gib, price in sizes.items():
        found = table.of(gpu_machine(f"NVIDIA A100-PCIE-{gib}GB", gib * GIB))
        assert found is not None
        assert cost(days, found).likely == pytest.approx(price)
    ada = table.of(gpu_machine("NVIDIA GeForce RTX 4090", 24 * GIB))
    assert ada is not None
    assert cost(days, ada).likely == pytest.approx(36)
    assert table.of(gpu_machine("NVIDIA H100 80GB HBM3", 80 * GIB)) is None


def test_an_operators_prices_replace_them(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('currency = "EUR"\n[[price]]\ngpu = "H100"\nper_hour = 2.5\n')
    table = PriceTable.read(file)
    assert table.currency == "EUR"
    price = table.of(gpu_machine("NVIDIA H100 80GB HBM3", 80 * GIB))
    assert price is not None
    assert price.per_hour == 2.5
    assert table.of(gpu_machine("NVIDIA A100-SXM4-80GB", 80 * GIB)) is None
    file.write_text("[[price]]\ngpu = 1\n")
    with pytest.raises(JobError) as caught:
        PriceTable.read(file)
    assert caught.value.reason == "INVALID_PRICES"


def test_several_gpus_are_as_fast_as_measured_or_at_most_as_their_number() -> None:
    """Users decide by it how many GPUs to pay for."""
    four = replace(A100, world_size=4)
    shared = replace(SETUP, world_size=4)
    one = estimate_duration(ARCHITECTURE, SETUP, A100, Work(1e6))
    assumed = estimate_duration(ARCHITECTURE, shared, four, Work(1e6))
    assert 3.5 < one.seconds.likely / assumed.seconds.likely < 4
    assert assumed.seconds.low == pytest.approx(one.seconds.low / 4)
    assert "4 processes" in assumed.speed.basis
    gathering = estimate_duration(ARCHITECTURE, replace(shared, parallelism="fsdp"), four, Work(1e6))
    assert assumed.seconds.likely < gathering.seconds.likely
    # One device was measured: its speed is scaled.
    calibration = Calibration([observed(2000)])
    scaled = estimate_duration(ARCHITECTURE, shared, four, Work(1e6), calibration)
    assert 1e6 / 8000 < scaled.seconds.likely < 1e6 / 7000
    assert "scaled to 4" in scaled.speed.basis
    # Four were measured, slower than assumed: that counts.
    calibration.observe(replace(observed(5000), world_size=4))
    measured = estimate_duration(ARCHITECTURE, shared, four, Work(1e6), calibration)
    assert measured.seconds.likely == pytest.approx(1e6 / 5000)
    assert estimate_duration(ARCHITECTURE, SETUP, A100, Work(1e6), calibration).seconds.likely == pytest.approx(500)


def test_processes_on_one_cpu_are_not_faster_than_one() -> None:
    setup = Setup("lora", "fp32", False, 4, 512, False, "adamw_torch")
    cpu = replace(A100, name="CPU", on_gpu=False, peak_flops=3e11)
    one = estimate_duration(known("smollm2-135m"), setup, cpu, Work(1e6))
    two = estimate_duration(known("smollm2-135m"), replace(setup, world_size=2), replace(cpu, world_size=2), Work(1e6))
    assert one.seconds.likely <= two.seconds.likely < 1.1 * one.seconds.likely


def test_all_gpus_are_paid_for() -> None:
    price = PriceTable.read().of(A100)
    assert price is not None
    hour = Interval(3600, 3600, 3600)
    assert cost(hour, price, 4).likely == pytest.approx(4 * cost(hour, price).likely)


def test_steps_of_inl_blocks_cost_time_beside_their_products() -> None:
    """On a GPU they take most of it, which operations alone would not show."""
    inl, setup = known("inl-3b"), replace(SETUP, method="full")
    assert work_per_token(inl, setup) > 3 * flops_per_token(inl, setup)
    assert work_per_token(ARCHITECTURE, SETUP) == flops_per_token(ARCHITECTURE, SETUP)


# Tokens per second of one core's processor time, with AVX-512 and avx512_bf16 (docs/estimates.md), and rows of a
# micro-batch.
_TINY_INL = {"vocab_size": 49152, "hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 704}
_MEASURED_ON_A_CORE = [
    ("inl-small", {"vocab_size": 49152}, "lora", "fp32", 4, 178),
    ("inl-small", {"vocab_size": 49152}, "lora", "bf16", 4, 228),
    ("inl-small", {"vocab_size": 49152}, "full", "fp32", 4, 164),
    ("inl-small", _TINY_INL, "full", "fp32", 2, 273),
    ("smollm2-135m", {}, "lora", "fp32", 1, 85),
    ("smollm2-135m", {}, "lora", "bf16", 1, 124),
]


@pytest.mark.parametrize(("name", "changes", "method", "precision", "rows", "measured"), _MEASURED_ON_A_CORE)
def test_a_cpu_is_as_fast_as_measured_before_anything_is_known(
    name: str, changes: dict[str, int], method: Method, precision: Precision, rows: int, measured: float
) -> None:
    """Operations on single elements take a large part of the time, which a count of products would miss."""
    architecture = Architecture.from_config({**CONFIGS[name], **changes})
    setup = Setup(method, precision, False, rows, 256, False, "adamw_torch", trained_share=0.9)
    core = Machine.of(Hardware(cpu_cores=1, cpu_features=["avx512f", "avx512_bf16"]), gpus=0)
    found = predict_speed(architecture, setup, core, Calibration()).tokens_per_second
    assert measured / 2 < found.likely < 2 * measured
    assert found.low < measured < found.high
