"""Memory by component: published sizes, formulas, and invariants for every model."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from engine.config.job import Lora, Quantization
from engine.estimate.known_architectures import known
from engine.estimate.memory import (
    GIB,
    Estimator,
    Setup,
    estimate_memory,
    optimizer_bytes,
    quantised_bytes,
)

GPU = Setup("lora", "bf16", True, 4, 2048, True, "adamw_torch")


# Published sizes of these models in GB: 16-bit weights, and NF4 with double quantisation where the rest is 16-bit.
@pytest.mark.parametrize(
    ("model", "half", "nf4"),
    [
        ("llama-3.2-3b", 6.4, 2.2),
        ("llama-2-7b", 13.5, 3.9),
        ("llama-3.1-8b", 16.1, 5.7),
        ("llama-2-13b", 26.0, 7.2),
        ("llama-3.1-70b", 141.1, 39.5),
    ],
)
def test_weights_have_the_published_sizes(model: str, half: float, nf4: float) -> None:
    architecture = known(model)
    assert Estimator(architecture, GPU).weights / 1e9 == pytest.approx(half, rel=0.01)
    quantised = Estimator(architecture, replace(GPU, method="qlora"))
    rest = architecture.num_parameters - architecture.num_linear_weights
    # Weights that are not quantised are float32 in our trainings: twice their published size.
    assert (quantised.weights - 2 * rest) / 1e9 == pytest.approx(nf4, rel=0.03)


def test_nf4_has_half_a_byte_a_weight_and_its_scales() -> None:
    """0.5 + 4/64 bytes, or with double quantisation 0.5 + 1/64 + 4/(64·256)."""
    side = 4096
    plain = quantised_bytes(side, side, Quantization(bnb_4bit_use_double_quant=False))
    double = quantised_bytes(side, side, Quantization())
    assert plain / side**2 == pytest.approx(0.5625, rel=1e-4)
    assert double / side**2 == pytest.approx(0.515869, rel=1e-3)
    assert quantised_bytes(side, side, Quantization(bits=8)) == side**2 + 4 * side


def test_optimizer_states() -> None:
    """The optimizer's states often decide whether a training fits."""
    assert optimizer_bytes("adamw_torch", 1000, 1000) == 8_000_000
    assert optimizer_bytes("paged_adamw_32bit", 1000, 1000) == 8_000_000
    assert optimizer_bytes("paged_adamw_8bit", 1024, 1024) == 2 * 1024**2 + 8 * 4096
    assert optimizer_bytes("adamw_8bit", 1, 4095) == 8 * 4095
    assert optimizer_bytes("adafactor", 1000, 500) == 4 * 1500
    assert optimizer_bytes("sgd", 1000, 1000) == 0


def test_adapter_parameters_equal_those_of_peft() -> None:
    """r·(m + n) for every linear layer except the head: SmolLM2-135M with r 16 has 4,884,480."""
    estimator = Estimator(known("smollm2-135m"), GPU)
    assert estimator.num_adapter_parameters == 4_884_480
    only = replace(GPU, lora=Lora(target_modules=["q_proj", "v_proj"]))
    assert Estimator(known("smollm2-135m"), only).num_adapter_parameters == 30 * 16 * (576 + 576 + 576 + 192)


@pytest.mark.parametrize("model", ["llama-3.1-8b", "gemma-2-2b", "qwen3-0.6b", "phi-3-mini", "inl-3b", "qwen3-30b-a3b"])
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_less_work_never_takes_more_memory(model: str, method: Any, on_gpu: bool) -> None:
    """Reductions are tried in order: each must take less memory than the one before."""
    architecture = known(model)
    for precision, padded in itertools.product(("fp32", "bf16"), (False, True)):
        setup = Setup(method, precision, on_gpu, 4, 1024, False, "adamw_torch", padded=padded)  # type: ignore[arg-type]
        whole = estimate_memory(architecture, setup)
        assert whole.upper_bytes > whole.total_bytes == sum(part.size_bytes for part in whole.components)
        smaller = [
            replace(setup, rows=2), replace(setup, length=512), replace(setup, checkpointing=True),
            replace(setup, lora=Lora(r=8)), replace(setup, optimizer="sgd"), replace(setup, trained_share=0.5),
        ]  # fmt: skip
        for other in smaller:
            assert estimate_memory(architecture, other).upper_bytes <= whole.upper_bytes


def test_quantised_weights_take_less_than_half_precision_and_those_less_than_all() -> None:
    """The methods are tried in this order."""
    sizes = [estimate_memory(known("llama-3.1-8b"), replace(GPU, method=m)) for m in ("qlora", "lora", "full")]
    assert [size.total_bytes for size in sizes] == sorted(size.total_bytes for size in sizes)
    # Weights, gradients and two moments in float32 alone.
    assert sizes[2].total_bytes > 16 * known("llama-3.1-8b").num_parameters
    assert sizes[0]["weights"] < 8 * GIB
    assert sizes[0]["nothing of that name"] == 0
