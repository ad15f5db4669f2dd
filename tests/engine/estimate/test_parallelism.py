"""Memory of each process by hand-computed cases, and what holds for every model and number of processes."""

import itertools
from dataclasses import replace
from typing import get_args

import pytest

from engine.estimate.known_architectures import known
from engine.estimate.memory import Estimator, Setup, estimate_memory
from engine.estimate.parallelism import (
    BUCKET_ELEMENTS,
    Parallelism,
    Share,
    Whole,
    exchange_seconds,
    obstacle,
    share,
)

ALL: tuple[Parallelism, ...] = get_args(Parallelism)
# 1,000 weights: 8 blocks of 100, and 200 outside them; all are trained with AdamW in bf16.
FULL = Whole(
    weights=4000, adapters=0, gradients=4000, optimizer=8000, trained=1000, trains_base=True, value=2,
    block=100, ends=200, blocks=8,
)  # fmt: skip
# The same with 80 adapter weights, 10 in each block; the base weights have 16 bits.
LORA = replace(FULL, weights=2000, adapters=320, gradients=320, optimizer=640, trained=80, trains_base=False)
BUCKETS = 2 * 2 * BUCKET_ELEMENTS


@pytest.mark.parametrize(
    ("whole", "parallelism", "expected"),
    [
        # Everything, and a copy of the gradients.
        (FULL, "ddp", Share(4000, 0, 4000, 8000, buffers=4000)),
        (LORA, "ddp", Share(2000, 320, 320, 640, buffers=320)),
        # 4 bytes a weight; of 4 + (4 + 8) bytes of gradients, a copy of the weights and moments a quarter: 4Ψ + 16Ψ/4.
        (FULL, "zero2", Share(4000, 0, 1000, 3000, buffers=BUCKETS)),
        (LORA, "zero2", Share(2000, 320, 80, 240, buffers=BUCKETS)),
        # In main memory: 8 bytes of moments, 4 of weights, 4 of gradients, 4 of copies.
        (FULL, "zero2_offload", Share(4000, 0, 0, 0, buffers=BUCKETS, host=20_000)),
        (LORA, "zero2_offload", Share(2000, 320, 0, 0, buffers=BUCKETS, host=20 * 80)),
        # A quarter of everything; two blocks and both ends as they are stored, and the gradients of what is trained.
        (FULL, "fsdp", Share(1000, 0, 1000, 2000, gathered=4 * 400, buffers=4 * 400)),
        (LORA, "fsdp", Share(500, 80, 80, 160, gathered=2 * 400 + 4 * 20, buffers=4 * 20)),
        (FULL, "zero3", Share(500, 0, 500, 3000, gathered=800, buffers=BUCKETS)),
        (FULL, "zero3_offload", Share(0, 0, 0, 0, gathered=800, buffers=BUCKETS, host=18_000 + 2000)),
        (LORA, "zero3_offload", Share(0, 0, 0, 0, gathered=840, buffers=BUCKETS, host=18 * 80 + 2000)),
    ],
)
def test_shares_of_four_processes(whole: Whole, parallelism: Parallelism, expected: Share) -> None:
    assert share(whole, parallelism, 4) == expected


def test_zero_copies_its_part_of_the_gradients_for_the_step() -> None:
    """4 bytes as they were summed, and 4 for AdamW in one tensor."""
    stepping = share(FULL, "zero2", 4, stepping=True)
    assert stepping.gradients == (4 + 4) * 1000 / 4
    assert stepping.gradients + stepping.optimizer == (20 * 1000) / 4


def test_one_process_holds_the_whole() -> None:
    assert share(FULL, "ddp", 1) == Share(4000, 0, 4000, 8000)
    for model, method, on_gpu in itertools.product(("llama-3.1-8b", "inl-small"), ("lora", "qlora", "full"), (0, 1)):
        setup = Setup(method, "bf16", bool(on_gpu), 4, 512, True, "adamw_torch")  # type: ignore[arg-type]
        memory = estimate_memory(known(model), setup)
        assert {"gathered", "buffers"}.isdisjoint(part.name for part in memory.components)
        assert memory.host_bytes == memory.host_upper_bytes == 0


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3-0.6b", "inl-small", "qwen3-30b-a3b"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_more_processes_never_take_more_memory_each(model: str, method: str) -> None:
    """Users add GPUs to train a larger model."""
    for parallelism, on_gpu in itertools.product(ALL, (False, True)):
        setup = Setup(method, "bf16", on_gpu, 4, 512, True, "adamw_torch", parallelism=parallelism)  # type: ignore[arg-type]
        sizes = [estimate_memory(known(model), replace(setup, world_size=n)).upper_bytes for n in (2, 4, 8, 64)]
        assert sizes == sorted(sizes, reverse=True)
        assert (len(set(sizes)) == 1) == (parallelism == "ddp" or parallelism.endswith("offload"))


def test_dividing_more_takes_less_where_everything_is_trained() -> None:
    """The order in which they are tried, on eight GPUs; the ZeRO paper compares them in the same way."""
    setup = Setup("full", "bf16", True, 1, 512, True, "adamw_torch", world_size=8)
    needs = {p: estimate_memory(known("llama-3.1-8b"), replace(setup, parallelism=p)) for p in ALL}
    weights = known("llama-3.1-8b").num_parameters
    # 4 + 4 + 8 bytes a weight, and 4 for the buckets.
    assert needs["ddp"].total_bytes > 20 * weights
    assert needs["ddp"].upper_bytes > needs["zero2"].upper_bytes > needs["fsdp"].upper_bytes
    assert needs["zero2"].upper_bytes > needs["zero2_offload"].upper_bytes
    assert needs["zero2_offload"].host_bytes > 18 * weights
    assert needs["zero2_offload"]["optimizer"] == needs["zero2_offload"]["gradients"] == 0


def test_weights_are_loaded_whole_by_one_process_after_the_other() -> None:
    """A node whose main memory holds no copy of the model would end the trainer while it loads."""
    setup = Setup("lora", "bf16", True, 1, 8, True, "adamw_torch", world_size=4, parallelism="fsdp")
    on_gpus = estimate_memory(known("llama-3.1-70b"), setup)
    assert on_gpus.host_bytes > 2 * known("llama-3.1-70b").num_parameters
    assert on_gpus["weights"] < on_gpus.host_bytes / 4
    on_cpu = estimate_memory(known("llama-3.1-70b"), replace(setup, on_gpu=False, precision="fp32"))
    assert (on_cpu.moment, on_cpu.host_bytes) == ("loading", 0)
    assert on_cpu["weights"] == on_cpu["gathered"]


def test_adapters_with_ddp_exchange_little() -> None:
    """Frozen weights are gathered for each micro-batch by FSDP, and stay where they are with the others."""
    whole = Estimator(known("llama-3.1-8b"), Setup("lora", "bf16", True, 4, 512, True, "adamw_torch")).whole

    def seconds(parallelism: Parallelism, micro_batches: int = 4) -> float:
        return exchange_seconds(whole, parallelism, 4, micro_batches, on_gpu=True)

    # A ring of four sends 2 · 3/4 of 4 bytes for each trained weight, at 10 GB/s.
    assert seconds("ddp") == pytest.approx(1.5 * 4 * whole.trained / 10e9) == seconds("ddp", 1)
    assert seconds("fsdp") == pytest.approx(4 * seconds("fsdp", 1))
    assert seconds("fsdp") > 50 * seconds("ddp")
    assert seconds("zero2_offload") > seconds("zero2") > seconds("ddp", 1)


def test_what_cannot_be_divided_says_why() -> None:
    """A training that fails in its first step, or silently trains in another way, costs more than a refusal."""

    def why(
        parallelism: Parallelism,
        method: str = "lora",
        optimizer: str = "auto",
        precision: str = "bf16",
        **machine: bool,
    ) -> str:
        given = {"on_gpu": True, "deepspeed": True, **machine}
        return obstacle(parallelism, method=method, precision=precision, optimizer=optimizer, **given)

    assert why("ddp", "qlora", "paged_adamw_8bit", on_gpu=False, deepspeed=False) == ""
    assert why("zero2", "qlora") == why("fsdp") == why("zero2_offload", "full") == why("zero2", on_gpu=False) == ""
    assert "FSDP" in why("fsdp", "qlora")
    assert why("fsdp", "full", on_gpu=False) == why("fsdp", deepspeed=False) == ""
    assert "cannot be divided" in why("fsdp", optimizer="adamw_8bit")
    assert "deepspeed" in why("zero2", deepspeed=False)
    assert "adafactor" in why("zero2", optimizer="adafactor")
    assert "loss scale" in why("zero2", precision="fp16")
    assert "main memory" in why("zero2_offload", on_gpu=False)
