"""Chooses, from the number of steps, when an automatic job evaluates and saves, and how long it warms up."""

import math
from typing import Final

from engine.config.job import MAX_INTERVAL, JobConfig
from engine.plan.resolved import Resolved

_TIMES: Final = 10
"""Checkpoints and evaluations of a job: a failure then costs at most a tenth of it, and a loss that rises again shows
early enough to stop."""
_MOST_UNSAVED: Final = 200
"""Steps between two checkpoints of a long job: those of the recipe finetuneflow."""
_EVALUATING: Final = 0.2
"""Operations that all evaluations may take, as a share of those of training: with ten evaluations 2 % each. At the
defaults, a tenth of the rows evaluated ten times is 18 %."""
_LEAST_EVALUATIONS: Final = 3
"""Evaluations of a job, however much they cost: fewer cannot tell a loss that rises from one that falls slowly."""
_WARM_UP: Final = 0.03
"""Share of the steps over which the learning rate rises, that of the recipe finetuneflow."""
_PATH: Final = "hyperparameters."
_AUTOMATIC: Final = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "packing",
    "group_by_length",
    "eval_steps",
    "save_steps",
)


def automatic_fields(config: JobConfig) -> frozenset[str]:
    """Returns the paths of the hyperparameters that the caller and the recipe leave to preflight."""
    hyper = config.hyperparameters
    return frozenset(f"{_PATH}{name}" for name in _AUTOMATIC if getattr(hyper, name) is None)


def resolve_intervals(resolved: Resolved, steps: int, evaluation_share: float) -> None:
    """Resolves save_steps, eval_steps and warmup_steps of a job of `steps` steps.

    `evaluation_share` is what one evaluation costs, as a share of the operations of the whole training; 0 if no row is
    held out.
    """
    hyper = resolved.config.hyperparameters
    tenth = max(1, math.ceil(steps / _TIMES))
    if hyper.save_steps is None:
        save = min(tenth, _MOST_UNSAVED)
        why = f"a tenth of {steps:,} steps" if save == tenth else f"a failure then costs at most {save} steps"
        if evaluation_share and hyper.eval_steps is not None and hyper.eval_steps < save:
            # Every evaluation saves: other checkpoints between two of them would only be more.
            save -= save % hyper.eval_steps
        resolved.choose(f"{_PATH}save_steps", save, why)
    if hyper.eval_steps is None:
        resolved.choose(f"{_PATH}eval_steps", *_eval_steps(resolved.config, steps, tenth, evaluation_share))
    if hyper.warmup_steps is None and hyper.warmup_ratio is None:
        resolved.choose(f"{_PATH}warmup_steps", *_warmup_steps(resolved.config, steps))


def _eval_steps(config: JobConfig, steps: int, tenth: int, evaluation_share: float) -> tuple[int, str]:
    if not evaluation_share:
        return tenth, "no rows are held out, so nothing is evaluated"
    affordable = max(_LEAST_EVALUATIONS, math.floor(_EVALUATING / evaluation_share))
    every, why = tenth, f"a tenth of {steps:,} steps"
    if affordable < _TIMES:
        every = math.ceil(steps / affordable)
        why = f"one evaluation takes {evaluation_share:.1%} of the operations of training"
    # A multiple, so that the checkpoint of an evaluation is one of those that are saved anyway.
    save = config.hyperparameters.save_steps or 1
    multiple = math.ceil(every / save) * save
    least = min(_LEAST_EVALUATIONS, steps // every)
    if steps // multiple < least:
        multiple = max(every // save, 1) * save
    if steps // multiple < least:
        # Checkpoints are rarer than that. Every evaluation saves one of its own.
        multiple = every
    return min(multiple, MAX_INTERVAL), why


def _warmup_steps(config: JobConfig, steps: int) -> tuple[int, str]:
    if config.hyperparameters.lr_scheduler_type == "constant":
        return 0, "the schedule constant has no warm-up"
    warm = math.floor(round(_WARM_UP * steps, 6))
    if warm < 2:
        # The first step of a warm-up has rate 0.
        return 0, f"a warm-up of {_WARM_UP:.0%} of {steps:,} steps would only be a step without effect"
    return warm, f"{_WARM_UP:.0%} of {steps:,} steps"
