"""Automatic choices fit the machine, and each says why."""

from typing import Any

import pytest

from engine.config.job import Hyperparameters, JobConfig, job_config
from engine.config.steps import total_steps
from engine.errors import JobError
from engine.estimate.architecture import Architecture
from engine.estimate.known_architectures import known
from engine.plan.resolve import resolve, resolve_length
from engine.plan.resolved import Resolved
from finetuneflow.v1.hardware_pb2 import Gpu, Hardware

GIB = 2**30


SMALL = known("smollm2-135m")
SEVEN_B = known("llama-2-7b")


def machine(*, gib: float = 24, features: tuple[str, ...] = (), gpu: float = 0, capability: str = "8.6") -> Hardware:
    hardware = Hardware(memory_available_bytes=int(gib * GIB), cpu_features=features, packages={"bitsandbytes": "0.50"})
    if gpu:
        hardware.gpus.append(
            Gpu(name="GPU", memory_free_bytes=int(gpu * GIB), compute_capability=capability, bf16=capability >= "8")
        )
        hardware.cuda_available = True
    return hardware


def resolved(hardware: Hardware, architecture: Architecture = SMALL, longest: int = 256, **spec: Any) -> Resolved:
    result = Resolved(job_config({"base_model": "m", "training_data": [{"dataset": "d"}], **spec}))
    resolve(result, hardware, architecture, longest)
    result.raise_refusals()
    return result


def test_a_small_model_on_a_cpu() -> None:
    """LoRA in fp32, plain AdamW, no recomputation where memory is plenty; nothing is left automatic."""
    result = resolved(machine())
    config = result.config
    assert (config.method, config.hyperparameters.precision, config.hyperparameters.optim) == (
        "lora", "fp32", "adamw_torch",
    )  # fmt: skip
    assert config.hyperparameters.gradient_checkpointing is False
    assert config.resources.gpus == 0
    fields = {resolution.field: resolution for resolution in result.resolutions}
    assert set(fields) == {
        "method", "resources.gpus", "hyperparameters.precision", "hyperparameters.optim",
        "hyperparameters.gradient_checkpointing", "quantization.bnb_4bit_compute_dtype", "lora.target_modules",
        "hyperparameters.attn_implementation", "hyperparameters.packing", "hyperparameters.group_by_length",
        "hyperparameters.per_device_train_batch_size", "hyperparameters.per_device_eval_batch_size",
        "hyperparameters.gradient_accumulation_steps",
    }  # fmt: skip
    assert all(resolution.value and resolution.reason for resolution in result.resolutions)
    assert "GiB" in fields["hyperparameters.gradient_checkpointing"].reason


def test_bf16_on_a_cpu_only_where_it_pays() -> None:
    assert resolved(machine(features=("avx512_bf16",))).config.hyperparameters.precision == "bf16"
    for precision in ("bf16", "fp16"):
        with pytest.raises(JobError) as caught:
            resolved(machine(), hyperparameters={"precision": precision})
        assert caught.value.reason == "PRECISION_UNAVAILABLE"


def test_gpus_decide_precision_and_method() -> None:
    """An older GPU has no bf16; a model that does not fit as it is gets quantised."""
    old = resolved(machine(gpu=16, capability="7.5"))
    assert (old.config.hyperparameters.precision, old.config.resources.gpus) == ("fp16", 1)
    assert resolved(machine(gpu=80), SEVEN_B).config.method == "lora"
    small = resolved(machine(gpu=12), SEVEN_B, longest=1024, hyperparameters={"per_device_train_batch_size": 1})
    assert (small.config.method, small.config.hyperparameters.optim) == ("qlora", "paged_adamw_8bit")
    assert "LoRA does not fit" in next(r.reason for r in small.resolutions if r.field == "method")


def test_a_divided_optimizer_decides_precision_and_optimizer() -> None:
    """DeepSpeed would clip by a wrong norm with fp16, and cannot divide 8-bit states; both are what preflight chooses
    for one GPU."""
    resources = {"world_size": 2, "parallelism": "zero2"}
    hardware = machine(gpu=16, capability="7.5")
    hardware.gpus.append(hardware.gpus[0])
    with pytest.raises(JobError) as missing:
        resolved(hardware, resources=resources)
    assert missing.value.reason == "PARALLELISM_UNAVAILABLE" and "deepspeed" in missing.value.message
    hardware.packages["deepspeed"] = "0.19.8"
    chosen = resolved(hardware, resources=resources, method="qlora").config.hyperparameters
    assert (chosen.precision, chosen.optim) == ("fp32", "adamw_torch")


def test_recomputation_is_turned_on_when_memory_is_short() -> None:
    plenty = resolved(machine(gib=24), longest=512, hyperparameters={"per_device_train_batch_size": 8})
    short = resolved(machine(gib=16), longest=512, hyperparameters={"per_device_train_batch_size": 8})
    assert plenty.config.hyperparameters.gradient_checkpointing is False
    assert short.config.hyperparameters.gradient_checkpointing is True


def test_job_that_cannot_fit_is_refused_with_advice() -> None:
    """Half an hour into a job is too late to learn it."""
    with pytest.raises(JobError) as caught:
        resolved(machine(gib=24), SEVEN_B, method="full")
    assert caught.value.reason == "INSUFFICIENT_MEMORY"
    assert "lora" in caught.value.advice
    assert "max_length" not in caught.value.advice, "weights, gradients and states alone are too much"


@pytest.mark.parametrize(("gib", "optimizer"), [(60, "adafactor"), (24, None)])
def test_advice_for_random_weights_that_do_not_fit_is_an_optimizer(gib: int, optimizer: str | None) -> None:
    """They have no adapters to advise, and shorter rows save nothing of what they need."""
    with pytest.raises(JobError) as caught:
        resolved(machine(gib=gib), SEVEN_B, base_model="random:org/name", method="full")
    advice = caught.value.advice
    assert ("hyperparameters.optim=adafactor" in advice) == (optimizer is not None)
    assert "max_length" not in advice and "lora" not in advice
    assert "a larger node" in advice


def test_qlora_on_a_cpu_works_and_warns() -> None:
    result = resolved(machine(), method="qlora", recipe="fitbox")
    assert result.config.method == "qlora"
    assert {warning.reason for warning in result.warnings} == {"QLORA_ON_CPU", "OPTIMIZER_ON_CPU"}
    bare = machine()
    del bare.packages["bitsandbytes"]
    with pytest.raises(JobError) as caught:
        resolved(bare, method="qlora")
    assert caught.value.reason == "MISSING_PACKAGE"


def test_missing_gpu_is_refused() -> None:
    with pytest.raises(JobError) as caught:
        resolved(machine(), resources={"gpus": 1})
    assert caught.value.violations[0].field == "spec.resources.gpus"


def test_unknown_module_is_refused_by_name() -> None:
    with pytest.raises(JobError) as caught:
        resolved(machine(), lora={"target_modules": ["q_proj", "v_porj"]})
    (violation,) = caught.value.violations
    assert violation.field == "spec.lora.target_modules[1]"
    assert "Did you mean v_proj?" in violation.description


@pytest.mark.parametrize(
    ("lora", "field", "said"),
    [
        ({"target_modules_pattern": r".*\.q_porj"}, "target_modules_pattern", "matches no linear layer"),
        ({"target_modules_pattern": r"model\..*"}, "target_modules_pattern", "also matches model."),
        ({"layers_to_transform": [0, 30]}, "layers_to_transform[1]", "blocks 0 to 29"),
        ({"modules_to_save": ["norm", "lm_haed"]}, "modules_to_save[1]", "'lm_haed'"),
    ],
)
def test_parts_that_the_model_lacks_are_refused(lora: dict[str, Any], field: str, said: str) -> None:
    """peft would raise in the training, or adapt nothing there."""
    with pytest.raises(JobError) as caught:
        resolved(machine(), lora=lora)
    (violation,) = caught.value.violations
    assert caught.value.reason == "UNKNOWN_MODULE"
    assert violation.field == f"spec.lora.{field}" and said in violation.description


def test_pattern_without_end_is_refused() -> None:
    """It would hold the process, and every other caller's calls with it."""
    with pytest.raises(JobError) as caught:
        resolved(machine(), lora={"target_modules_pattern": r"((\w|\.)+)+X"})
    assert caught.value.violations[0].field == "spec.lora.target_modules_pattern"


def test_modules_that_the_model_has_are_accepted() -> None:
    lora = {"target_modules_pattern": r".*\.(1|2)\.mlp\..*", "modules_to_save": ["lm_head", "norm"]}
    assert not resolved(machine(), lora=lora).refusals


@pytest.mark.parametrize(("init", "method"), [("pissa", "lora"), ("olora", "lora"), ("loftq", "qlora")])
def test_method_follows_the_initial_values(init: str, method: str) -> None:
    """The memory alone would choose a method that the initial values do not exist for."""
    assert resolved(machine(), lora={"init_lora_weights": init}).config.method == method


def test_attention_that_the_machine_lacks_is_refused() -> None:
    with pytest.raises(JobError) as caught:
        resolved(machine(), hyperparameters={"attn_implementation": "flash_attention_2"})
    assert caught.value.reason == "ATTENTION_UNAVAILABLE"


def test_max_length_stays_within_the_models_context() -> None:
    result = Resolved(JobConfig(base_model="m"))
    resolve_length(result, 512, asked=True)
    assert result.config.hyperparameters.max_length == 512
    assert result.warnings[0].reason == "MAX_LENGTH_CLIPPED"


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 100, 384])
@pytest.mark.parametrize(("batch", "accumulation", "epochs"), [(8, 1, 1.0), (4, 4, 3.0), (3, 2, 0.5), (2, 5, 0.1)])
def test_steps_are_counted_as_the_trainer_does(
    rows: int, batch: int, accumulation: int, epochs: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Progress bars and learning-rate schedules end where the training does."""
    import torch
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("trainer")),
        use_cpu=True,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
    )
    trainer = Trainer(torch.nn.Linear(1, 1), arguments, train_dataset=[{"x": 0}] * rows)
    counted = trainer.set_initial_training_values(arguments, trainer.get_train_dataloader())[-1]
    hyper = Hyperparameters(
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, num_epochs=epochs
    )
    config = JobConfig(base_model="m", hyperparameters=hyper)
    assert total_steps(rows, config) == counted
    config.hyperparameters.max_steps = 5
    assert total_steps(rows, config) == 5
