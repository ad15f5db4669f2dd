"""Extensions of trainings: callbacks, or another loss, from a Python package of the operator.

A package names a function as an entry point in its pyproject.toml:

    [project.entry-points."finetuneflow.trainer"]
    watch = "our_package.training:extend"

`FTF_TRAINER_EXTENSIONS=["watch"]` applies it. The function gets the `Training` before its first step:

    def extend(training):
        training.callbacks.append(WatchNorms(training.config.hyperparameters.max_steps))

It runs in the confined child, with what that may do: no network, its own folder, and no data but its job's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback

from engine.config.job import JobConfig
from engine.errors import SystemFailure

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
            message = f"The operator's extension {name!r} failed: {type(error).__name__}: {error}"
            raise SystemFailure("EXTENSION_FAILED", message, "Ask the operator to correct it.") from error
