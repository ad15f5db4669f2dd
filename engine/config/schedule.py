"""Computes the learning-rate schedule of a job as the training library takes it."""

import math
from typing import Any

from engine.config.job import Hyperparameters

_POLYNOMIAL_END = 1e-7
"""The library's default end rate."""


def num_warmup_steps(hyper: Hyperparameters, total_steps: int) -> int:
    """Returns the number of warm-up steps, over which the learning rate rises from 0. It is less than `total_steps`.

    A ratio is rounded down, where the library rounds up: step 1 of a warm-up has rate 0, so 3 % of 8 steps rounded up
    would leave one of the 8 without effect, and a job of one step would train nothing.
    """
    if hyper.lr_scheduler_type == "constant":
        return 0
    if hyper.warmup_steps is not None:
        wanted = hyper.warmup_steps
    else:
        # 0.29 * 100 is 28.999...
        wanted = math.floor(round((hyper.warmup_ratio or 0.0) * total_steps, 6))
    # As many as there are steps would also divide by zero in the polynomial schedule.
    return min(wanted, max(total_steps - 1, 0))


def scheduler_name(hyper: Hyperparameters) -> str:
    """Returns the library's name of the schedule, which for a cosine with a floor is another one."""
    return "cosine_with_min_lr" if hyper.min_learning_rate_ratio else hyper.lr_scheduler_type


def scheduler_arguments(hyper: Hyperparameters) -> dict[str, Any]:
    """Returns the arguments of the schedule besides steps and warm-up."""
    if hyper.lr_scheduler_type == "polynomial":
        # The library refuses an end rate that is not below the peak rate.
        return {"lr_end": min(_POLYNOMIAL_END, hyper.learning_rate / 10)}
    if hyper.min_learning_rate_ratio:
        return {"min_lr_rate": hyper.min_learning_rate_ratio}
    return {}
