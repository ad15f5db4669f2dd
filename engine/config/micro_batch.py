"""Halves the micro-batch after an out-of-memory failure; a step keeps its number of rows."""

from collections.abc import MutableSequence
from typing import Final

from finetuneflow.v1.fine_tuning_job_pb2 import Resolution
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec

MAX_ACCUMULATION: Final = 1024


def halved(micro_batch: int, accumulation: int) -> tuple[int, int] | None:
    """Returns (rows of a micro-batch, micro-batches of a step): at most half the rows, and the same rows per step.

    Returns None if a micro-batch has one row already, or if a step would need more than 1,024 micro-batches.
    """
    rows = micro_batch * accumulation
    for smaller in range(micro_batch // 2, 0, -1):
        if rows % smaller == 0:
            return (smaller, rows // smaller) if rows // smaller <= MAX_ACCUMULATION else None
    return None


def shrink(spec: FineTuningJobSpec, resolutions: MutableSequence[Resolution], cause: str) -> list[str]:
    """Halves the micro-batches of training and evaluation in a resolved spec, in place.

    Replaces the resolutions of the changed fields by ones with the reason `cause`. Returns the changes as
    `field = value`; an empty list if no micro-batch can be smaller.
    """
    hyper = spec.hyperparameters
    values: dict[str, int] = {}
    smaller = halved(hyper.per_device_train_batch_size, hyper.gradient_accumulation_steps)
    if smaller is not None:
        values["per_device_train_batch_size"], values["gradient_accumulation_steps"] = smaller
    if hyper.per_device_eval_batch_size > 1:
        values["per_device_eval_batch_size"] = hyper.per_device_eval_batch_size // 2
    fields = {f"hyperparameters.{name}" for name in values}
    kept = [resolution for resolution in resolutions if resolution.field not in fields]
    del resolutions[:]
    resolutions.extend(kept)
    for name, value in values.items():
        setattr(hyper, name, value)
        resolutions.append(Resolution(field=f"hyperparameters.{name}", value=str(value), reason=cause))
    return [f"{name} = {value}" for name, value in values.items()]
