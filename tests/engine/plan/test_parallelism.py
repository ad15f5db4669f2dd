"""Several processes share a training in the first way that fits, with the reason, or in the one that is named."""

from typing import Any

import pytest

from engine.config.job import job_config
from engine.estimate import parallelism
from engine.estimate.architecture import Architecture
from engine.estimate.known_architectures import known
from engine.estimate.machine import Machine
from engine.estimate.memory import GIB
from engine.estimate.recommend import plan
from engine.plan.resolve import resolve
from engine.plan.resolved import Resolved
from finetuneflow.v1.hardware_pb2 import Gpu, Hardware

SMALL, EIGHT_B, SEVENTY_B = known("smollm2-135m"), known("llama-3.1-8b"), known("llama-3.1-70b")


def node(*gib: float, host: float = 512, packages: tuple[str, ...] = ("bitsandbytes", "deepspeed")) -> Hardware:
    gpus = [Gpu(name="GPU", memory_free_bytes=int(size * GIB), compute_capability="9.0", bf16=True) for size in gib]
    return Hardware(
        cuda_available=bool(gpus),
        gpus=gpus,
        memory_available_bytes=int(host * GIB),
        cpu_features=["avx512_bf16"],
        packages=dict.fromkeys(packages, "1"),
    )


def resolved(hardware: Hardware, architecture: Architecture, resources: dict[str, Any], **spec: Any) -> Resolved:
    values = {"base_model": "m", "training_data": [{"dataset": "d"}], "resources": resources, **spec}
    result = Resolved(job_config(values))
    resolve(result, hardware, architecture, 512)
    return result


def reason(result: Resolved) -> str:
    return next(found.reason for found in result.resolutions if found.field == "resources.parallelism")


@pytest.mark.parametrize(
    ("architecture", "hardware", "method", "expected"),
    [
        (EIGHT_B, node(*[80] * 4), "lora", "ddp"),
        (SMALL, node(*[24] * 2), "full", "ddp"),
        # 20 bytes a weight do not fit into 80 GiB; 4 and an eighth of 20 do.
        (EIGHT_B, node(*[80] * 8), "full", "zero2"),
        # Without DeepSpeed.
        (EIGHT_B, node(*[80] * 4, packages=()), "full", "fsdp"),
        # Adapters have no states worth dividing; the weights do not fit on one GPU.
        (SEVENTY_B, node(*[80] * 4), "lora", "fsdp"),
        # Two GPUs hold no half of the gradients and moments, but the weights.
        (EIGHT_B, node(40, 40), "full", "zero2_offload"),
        (EIGHT_B, node(*[24] * 2), "qlora", "ddp"),
    ],
)
def test_first_way_that_fits_is_chosen_with_its_figures(
    architecture: Architecture, hardware: Hardware, method: str, expected: str
) -> None:
    result = resolved(hardware, architecture, {"gpus": len(hardware.gpus)}, method=method)
    assert result.refusals == []
    assert result.config.resources.parallelism == expected
    tried = [way for way in parallelism.ORDER if f"with {way}, the training needs" in reason(result)]
    assert tried[-1] == expected
    assert f"for each of {len(hardware.gpus)} processes" in reason(result)


def test_offloading_needs_main_memory() -> None:
    """20 bytes a weight do not fit into 64 GiB, whatever the GPUs have."""
    result = resolved(node(40, 40, host=64), EIGHT_B, {"gpus": 2}, method="full")
    assert result.refusals[0].reason == "INSUFFICIENT_MEMORY"


def test_processes_on_a_cpu_do_not_divide_their_weights_unless_told() -> None:
    """They share one memory: one process alone would need no more of it."""
    asked = {"world_size": 2}
    assert resolved(node(host=16, packages=()), EIGHT_B, asked, method="lora").config.resources.parallelism == "ddp"
    named = resolved(node(), SMALL, asked | {"parallelism": "fsdp"}, method="full")
    assert (named.refusals, named.config.resources.parallelism) == ([], "fsdp")


def test_named_way_stands_or_is_refused_with_the_reason() -> None:
    given = resolved(node(80, 80), SMALL, {"gpus": 2, "parallelism": "fsdp"}, method="lora")
    assert (given.refusals, given.config.resources.parallelism) == ([], "fsdp")
    resources = {"world_size": 2, "parallelism": "fsdp"}
    (refusal,) = resolved(node(80, 80), SMALL, resources, method="qlora").refusals
    assert (refusal.reason, refusal.violations[0].field) == ("PARALLELISM_UNAVAILABLE", "spec.resources.parallelism")
    assert "quantized" in refusal.message
    missing = resolved(node(80, 80, packages=()), SMALL, {"gpus": 2, "parallelism": "zero2"}, method="lora")
    assert "deepspeed" in missing.refusals[0].message


def test_divided_states_are_not_those_of_a_paged_optimizer() -> None:
    alone = resolved(node(24), EIGHT_B, {"gpus": 1}, method="qlora")
    assert alone.config.hyperparameters.optim == "paged_adamw_8bit"
    shared = resolved(node(24, 24), EIGHT_B, {"gpus": 2, "parallelism": "zero2"}, method="qlora")
    assert shared.config.hyperparameters.optim == "adamw_torch"


def test_gpu_with_the_least_free_memory_decides() -> None:
    """Processes do equal parts: one that runs out of memory ends the training of all."""
    hardware = node(80, 10, 70)
    machine = Machine.of(hardware, world_size=3)
    assert (machine.free_bytes, machine.world_size) == (10 * GIB, 3)
    assert Machine.of(hardware).free_bytes == 80 * GIB
    assert resolved(hardware, EIGHT_B, {"gpus": 3}, method="lora").refusals[0].reason == "INSUFFICIENT_MEMORY"
    assert resolved(hardware, EIGHT_B, {"gpus": 1}, method="lora").refusals == []
    (refusal,) = resolved(hardware, SMALL, {"gpus": 4}, method="lora").refusals
    assert refusal.reason == "NO_GPU"


def test_processes_on_a_cpu_share_its_memory() -> None:
    machine = Machine.of(node(host=16), gpus=0, world_size=4)
    assert (machine.on_gpu, machine.free_bytes) == (False, 4 * GIB)
    alone = plan(SMALL, Machine.of(node(host=16), gpus=0), job({}), "lora", 512)
    shared = plan(SMALL, machine, job({"world_size": 4}), "lora", 512)
    # Each has a copy of the gradients besides.
    assert shared.memory["buffers"] == shared.memory["gradients"] > alone.memory["buffers"] == 0
    assert "free for each process" in shared.parallelism_reason


def test_processes_that_do_not_fit_on_a_cpu_may_be_fewer() -> None:
    resources = {"gpus": 0, "world_size": 64}
    (refusal,) = resolved(node(host=16), SMALL, resources, method="lora").refusals
    assert refusal.reason == "INSUFFICIENT_MEMORY" and "resources.world_size below 64" in refusal.advice


def job(resources: dict[str, Any]) -> Any:
    return job_config({"base_model": "m", "training_data": [{"dataset": "d"}], "resources": resources})
