"""Extensions of trainings: callbacks, or another loss, from a Python package of the operator.

A package names a function as an entry point in its pyproject.toml:

    [project.entry-points."finetuneflow.trainer"]
    watch = "our_package.training:extend"

`FTF_TRAINER_EXTENSIONS=["watch"]` applies it. The function gets the `Training` before its first step:

    def extend(training):
        training.callbacks.append(WatchNorms(training.config.hyperparameters.max_steps))

It runs in the confined child, with what that may do: no network, its own folder, and no data but its job's.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback

from chassis.child import out_of_memory
from engine.config.job import JobConfig
from engine.errors import JobError, SystemFailure

GROUP: Final = "finetuneflow.trainer"
"""The group of entry points."""

Loss = Callable[[Any, Mapping[str, torch.Tensor], torch.Tensor | int], torch.Tensor]
"""(model, inputs, tokens) → scalar. `inputs` has `input_ids` and `labels`, both [rows, length], and `attention_mask`
or, for packed rows, `position_ids`; labels of positions that are not trained are -100. `tokens` is the number of
trained tokens of the whole step: a sum over this micro-batch divided by it makes the mean of the step."""


@dataclass
class Training:
    """A training that is about to begin, as an extension sees and changes it."""

    config: JobConfig
    """The job's resolved configuration."""
    model: Any
    """The model, with its adapters."""
    tokenizer: PreTrainedTokenizerBase
    out_dir: Path
    """Folder in which the child may write. Files that no event names are deleted with the attempt."""
    callbacks: list[TrainerCallback] = field(default_factory=list)
    """Callbacks of transformers' Trainer, called after those of the recipe."""
    loss: Loss | None = None
    """Replaces the loss of training, label smoothing included. Held-out rows are still scored by the mean over their
    tokens, so that the curves of jobs can be compared."""


def extend(training: Training, names: Sequence[str]) -> None:
    """Applies the operator's extensions in their order. Raises SystemFailure("EXTENSION_FAILED")."""
    for name in names:
        found = entry_points(group=GROUP, name=name)
        if not found:
            known = ", ".join(sorted(entry_points(group=GROUP).names)) or "none"
            message = f"The operator's extension {name!r} is not installed on this node; installed: {known}."
            raise SystemFailure("EXTENSION_FAILED", message, "Ask the operator to correct FTF_TRAINER_EXTENSIONS.")
        try:
            found[name].load()(training)
        except Exception as error:
            raise _failure([name], error) from error


@contextmanager
def failures_named(names: Sequence[str]) -> Iterator[None]:
    """Turns an error that one of these extensions raises in a callback or a loss into a SystemFailure that names it."""
    try:
        yield
    except (JobError, SystemFailure):
        raise
    except Exception as error:
        raising = _raising_extensions(error, names)
        if not raising or out_of_memory.reason_of(error):
            raise
        raise _failure(raising, error) from error


def _raising_extensions(error: Exception, names: Sequence[str]) -> list[str]:
    """Returns the extensions of the package that has a frame in the traceback; [] if none has."""
    points = entry_points(group=GROUP)
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if raising := [name for name in names if points[name].module.partition(".")[0] == package]:
            return raising
    return []


def _failure(names: Sequence[str], error: Exception) -> SystemFailure:
    quoted = " or ".join(map(repr, names))
    message = f"The operator's extension {quoted} failed: {type(error).__name__}: {error}"
    return SystemFailure("EXTENSION_FAILED", message, "Ask the operator to correct it.")
