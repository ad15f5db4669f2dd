"""The configuration that DeepSpeed gets for a job."""

from typing import Any

import pytest

from engine.config.deepspeed import deepspeed_arguments
from engine.config.job import JobConfig, job_config


def config(parallelism: str, **hyperparameters: Any) -> JobConfig:
    batches = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}
    return job_config(
        {
            "base_model": "m",
            "training_data": [{"dataset": "ds_1"}],
            "resources": {"gpus": 4, "parallelism": parallelism},
            "hyperparameters": batches | hyperparameters,
        }
    )


def test_batches_and_clipping_are_those_of_the_job() -> None:
    """DeepSpeed and the Trainer count micro-batches separately; if they differ, steps end at the wrong rows."""
    found = deepspeed_arguments(config("zero2", max_grad_norm=0.5), device="cuda") or {}
    assert (found["train_micro_batch_size_per_gpu"], found["gradient_accumulation_steps"]) == (2, 8)
    assert (found["train_batch_size"], found["gradient_clipping"]) == (64, 0.5)
    assert found["zero_optimization"]["stage"] == 2
    assert "offload_optimizer" not in found["zero_optimization"]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_trained_weights_keep_32_bits(precision: str) -> None:
    """DeepSpeed's own bf16 rounds the weights that are saved; its optimizers would replace the one of the job."""
    found = deepspeed_arguments(config("zero2", precision=precision), device="cuda") or {}
    assert found["bf16"] == found["fp16"] == {"enabled": False}
    assert "optimizer" not in found and "scheduler" not in found


def test_offloaded_states_are_updated_by_the_optimizer_of_the_job() -> None:
    """DeepSpeed would compile one of its own at the start of every training."""
    found = deepspeed_arguments(config("zero2_offload"), device="cuda") or {}
    assert found["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert found["zero_force_ds_cpu_optimizer"] is False


def test_other_trainings_use_no_deepspeed() -> None:
    """An operator without the package must be able to train."""
    assert deepspeed_arguments(config("ddp"), device="cuda") is None
