"""Every accepted learning-rate schedule starts, and no step has a learning rate of 0."""

import itertools
import typing
from pathlib import Path
from typing import Any

import pytest

from engine.config.job import Hyperparameters, Optimizer, Scheduler, job_config
from engine.config.schedule import num_warmup_steps
from engine.config.trl_arguments import sft_arguments
from engine.errors import JobError

SCHEDULERS = typing.get_args(Scheduler)
OPTIMIZERS = [name for name in typing.get_args(Optimizer) if name != "auto"]
RATES = [5e-324, 1e-300, 1e-7, 2e-4, 1.0]
WARM_UPS: list[dict[str, Any]] = [
    {"warmup_ratio": 0.0},
    {"warmup_ratio": 0.03},
    {"warmup_ratio": 0.999999999},
    {"warmup_steps": 0},
    {"warmup_steps": 1},
    {"warmup_steps": 10_000_000},
]


@pytest.mark.parametrize("total", [1, 2, 7, 100, 1000])
@pytest.mark.parametrize("warm_up", WARM_UPS)
def test_a_warm_up_is_shorter_than_the_training(warm_up: dict[str, Any], total: int) -> None:
    """The only step of a small job had learning rate 0: the job succeeded, and its adapter was zero."""
    for scheduler in SCHEDULERS:
        assert num_warmup_steps(Hyperparameters(lr_scheduler_type=scheduler, **warm_up), total) < total


def test_a_ratio_is_rounded_down() -> None:
    """Rounded up, 3 % of 8 steps is a step without effect."""
    counted = [num_warmup_steps(Hyperparameters(warmup_ratio=ratio), steps) for ratio, steps in
               [(0.03, 8), (0.03, 33), (0.03, 34), (0.29, 100), (0.1, 30), (0.5, 900)]]  # fmt: skip
    assert counted == [0, 0, 1, 29, 3, 450]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_accepted_config_builds_the_trainers_optimizer_and_schedule(
    scheduler: str, optimizer: str, tmp_path: Path
) -> None:
    """A combination that only the trainer refuses costs three attempts and ends as a fault of the system."""
    import torch
    from transformers import Trainer
    from trl import SFTConfig

    for rate, warm_up, total in itertools.product(RATES, WARM_UPS, [1, 2, 5]):
        hyper = {"optim": optimizer, "lr_scheduler_type": scheduler, "learning_rate": rate, **warm_up}
        hyper |= {"precision": "fp32", "gradient_checkpointing": False}
        spec = {"base_model": "m", "training_data": [{"dataset": "d"}], "method": "lora", "recipe": "finetuneflow"}
        config = job_config({**spec, "hyperparameters": hyper})
        given = sft_arguments(config, total_steps=total, output_dir=str(tmp_path), device="cpu")
        arguments = SFTConfig(**{**given, "eval_strategy": "no"})
        trainer = Trainer(torch.nn.Linear(2, 2), arguments)
        trainer.create_optimizer_and_scheduler(total)
        schedule = trainer.lr_scheduler
        assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
        factors = [schedule.lr_lambdas[0](step) for step in range(total + 1)]
        warm = num_warmup_steps(config.hyperparameters, total)
        # The smallest number of all has nothing between it and 0.
        trains = factors[1 if warm else 0 : total] if rate > 5e-324 else []
        assert all(factor > 0 for factor in trains), (rate, warm_up, total)
        assert max(factors) <= 1


def test_cosine_falls_to_its_floor(tmp_path: Path) -> None:
    """A long pretraining still learns in its last steps."""
    import torch
    from transformers import Trainer
    from trl import SFTConfig

    hyper = {"optim": "adamw_torch", "precision": "fp32", "gradient_checkpointing": False, "warmup_steps": 10}
    spec = {"base_model": "m", "training_data": [{"dataset": "d"}], "method": "lora", "recipe": "finetuneflow"}
    config = job_config({**spec, "hyperparameters": {**hyper, "min_learning_rate_ratio": 0.1}})
    given = sft_arguments(config, total_steps=100, output_dir=str(tmp_path), device="cpu")
    trainer = Trainer(torch.nn.Linear(2, 2), SFTConfig(**{**given, "eval_strategy": "no"}))
    trainer.create_optimizer_and_scheduler(100)
    schedule = trainer.lr_scheduler
    assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
    factors = [schedule.lr_lambdas[0](step) for step in (10, 55, 100)]
    assert factors == pytest.approx([1.0, 0.55, 0.1])


def test_other_schedules_have_no_floor() -> None:
    spec = {"base_model": "m", "training_data": [{"dataset": "d"}]}
    hyper = {"min_learning_rate_ratio": 0.1, "lr_scheduler_type": "linear"}
    with pytest.raises(JobError) as caught:
        job_config({**spec, "hyperparameters": hyper})
    assert [violation.field for violation in caught.value.violations] == [
        "spec.hyperparameters.min_learning_rate_ratio"
    ]
