"""Resolves how the processes of a training on several devices share it."""

from typing import Any

from engine.config.advice import setting
from engine.config.job import JobConfig
from engine.estimate.parallelism import Parallelism, eligible, obstacle
from engine.plan.free_memory import FreeMemory
from engine.plan.resolved import Resolved

_PATH = "resources.parallelism"


def resolve_parallelism(resolved: Resolved, memory: FreeMemory) -> None:
    """Chooses the first eligible way with which the training fits, in the smallest micro-batches that the job allows.

    Method and precision must be resolved. It may add the refusal PARALLELISM_UNAVAILABLE.
    """
    config = resolved.config
    asked = config.resources.parallelism
    if asked != "auto":
        if why := _obstacle(asked, config, memory):
            message = f"The training cannot be divided by {asked}: {why}."
            advice = f"Set {setting(_PATH, 'ddp')}, or remove {_PATH}: preflight selects what fits."
            resolved.refuse("PARALLELISM_UNAVAILABLE", _PATH, message, advice)
        return
    if config.world_size == 1:
        return
    least = _smallest(config)
    ways = eligible(config, config.method, on_gpu=memory.on_gpu, deepspeed=memory.deepspeed)
    fitting = first_way(config, memory, ways)
    tried = ways if fitting is None else ways[: ways.index(fitting) + 1]
    smallest: Parallelism = min(ways, key=lambda way: memory.needed(divided(config, way), **least).upper_bytes)
    chosen = fitting or smallest
    reasons = [f"with {way}, the training {memory.compared(divided(config, way), **least)}" for way in tried]
    resolved.choose(_PATH, chosen, "; ".join(reasons))


def first_way(config: JobConfig, memory: FreeMemory, ways: list[Parallelism]) -> Parallelism | None:
    """Returns the first of `ways` with which the training fits in the smallest micro-batches that the job allows."""
    least = _smallest(config)
    return next((way for way in ways if memory.holds(divided(config, way), **least)), None)


def divided(config: JobConfig, parallelism: Parallelism) -> JobConfig:
    """Returns the job with this parallelism."""
    return config.model_copy(update={"resources": config.resources.model_copy(update={"parallelism": parallelism})})


def _smallest(config: JobConfig) -> dict[str, Any]:
    hyper = config.hyperparameters
    recompute = True if hyper.gradient_checkpointing is None else hyper.gradient_checkpointing
    return {
        "per_device_train_batch_size": hyper.per_device_train_batch_size or 1,
        "gradient_checkpointing": recompute,
    }


def _obstacle(way: Parallelism, config: JobConfig, memory: FreeMemory) -> str:
    hyper = config.hyperparameters
    given = {"method": config.method, "precision": hyper.precision, "optimizer": hyper.optim}
    return obstacle(way, **given, on_gpu=memory.on_gpu, deepspeed=memory.deepspeed)
