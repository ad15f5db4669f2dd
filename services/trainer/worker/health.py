"""Recognises a training that breaks down: values that are not finite, spikes of the loss, a gradient that stays 0."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from chassis.child.pipe import EventSink
from engine.config.advice import setting
from engine.config.job import Hyperparameters
from engine.errors import JobError, Violation
from finetuneflow.v1.event_pb2 import Warning
from services.trainer.worker.progress import Progress
from services.trainer.worker.ranks import share_of

Rows = Callable[[int, int | None], list[str]]
"""Returns the names of the rows of a step, or of one of its micro-batches, from 0."""

# A loss is a spike if it exceeds the median of the steps before it by 8 standard deviations (of a normal distribution
# with the same median absolute deviation), by the median itself, and by half a nat. Losses of single rows differ by
# a few deviations in sound trainings, and those of a model that knows its rows differ by multiples of nearly 0.
# Before there are as many steps, a training has diverged if two steps in a row are above the loss of guessing each
# token of the vocabulary alike, and above twice the loss of the first step, which the untrained model had: a single row
# may be as odd, and a model without training begins at that loss.
_EARLIER_STEPS: Final = 16
_DEVIATIONS: Final = 8 * 1.4826
_FACTOR: Final = 2.0
_NATS: Final = 0.5
_MAX_SPIKES: Final = 5
_MAX_SKIPPED: Final = 24
"""Steps in a row that fp16's loss scaler may skip. Each one halves the scale, 2^16 at first: after 24 of them it is
below 1, so that the scale is not what makes the gradient infinite."""
_NAMED: Final = 8


class Health:
    """Checks each step by values that the host has anyway.

    A loss that is not finite ends the training before its backward pass, whatever the precision: one optimizer step
    with its gradient would make every trained weight NaN. (fp16's scaler would skip the step, but it cures overflows of
    the gradient, not of the forward pass; the same rows would be lost in every epoch, unseen.) A gradient that is not
    finite ends it too, except with fp16, whose scaler skips the step and is expected to. On a GPU the norm of the
    gradient is read where the Trainer reads it, at log events; before that, the weights that it made NaN show in the
    next loss, or in the check before a checkpoint is written.
    """

    def __init__(self, sink: EventSink, hyper: Hyperparameters, progress: Progress) -> None:
        self._sink, self._hyper, self._progress = sink, hyper, progress
        self.rows: Rows = lambda step, micro_batch: []
        self.guessing_loss = math.inf
        """Loss of a model that gives each token of the vocabulary the same probability."""
        self._grad_norm: Any = None
        """Norm of the last step's gradient: a tensor that is on its device."""
        self._num_spikes = self._num_zero = self._num_skipped = 0
        self._warned_of_zero = self._warned_of_divergence = False

    def check_loss(self, loss: float, micro_batch: int) -> None:
        """Raises JobError("LOSS_NOT_FINITE") unless the loss of a micro-batch of the next step is finite."""
        if math.isfinite(loss):
            return
        step = self._progress.step + 1
        if micro_batch == 0 and not self._is_finite(self._grad_norm):
            raise self._error(f"The gradient of step {step - 1} was not finite and destroyed the weights", step - 1)
        raise self._error(f"At step {step} the loss is {loss:g}", step, micro_batch)

    def check_gradient(self, norm: Any) -> None:
        """Notes the norm of the next step's gradient. Raises JobError("LOSS_NOT_FINITE") if it is on the host and not
        finite, before the weights are changed."""
        self._grad_norm = norm
        if not isinstance(norm, torch.Tensor) or norm.device.type == "cpu":
            self._check_norm(self._progress.step + 1)

    def check_skipped(self, skipped: bool) -> None:
        """Raises JobError("LOSS_NOT_FINITE") if fp16's loss scaler has skipped more steps in a row than it needs to."""
        self._num_skipped = self._num_skipped + 1 if skipped else 0
        if self._num_skipped > _MAX_SKIPPED:
            step = self._progress.step
            raise self._error(f"The gradients of {self._num_skipped} steps up to step {step} were not finite", step)

    def check_step(self, loss: float) -> None:
        """Warns if the loss of the step just completed is a spike, or if the first steps have diverged."""
        recent, step = self._progress.recent_losses, self._progress.step
        first_steps = 2 <= len(recent) < _EARLIER_STEPS and not self._warned_of_divergence
        if first_steps and min(loss, recent[-1]) > max(self.guessing_loss, _FACTOR * recent[0]):
            self._warned_of_divergence = True
            self._warn(
                "LOSS_SPIKE",
                f"At step {step} the loss is {loss:.4g}; it was {recent[0]:.4g} at first, and guessing each token "
                f"alike has {self.guessing_loss:.4g}: the training diverges.",
                "Cancel it, and lower hyperparameters.learning_rate or raise hyperparameters.warmup_steps.",
            )
        if len(recent) >= _EARLIER_STEPS and self._num_spikes < _MAX_SPIKES:
            median = statistics.median(recent)
            deviation = statistics.median(abs(each - median) for each in recent)
            if loss > max(_FACTOR * median, median + _DEVIATIONS * deviation, median + _NATS):
                self._num_spikes += 1
                more = " Later spikes are not reported." if self._num_spikes == _MAX_SPIKES else ""
                self._warn(
                    "LOSS_SPIKE",
                    f"At step {step} the loss is {loss:.4g}; in the {len(recent)} steps before it, it was about "
                    f"{median:.4g}.{_listed(self.rows(step, None))}{more}",
                    "Check these rows. If the loss does not fall back, lower hyperparameters.learning_rate or "
                    "hyperparameters.max_grad_norm.",
                )
        recent.append(loss)
        del recent[:-_EARLIER_STEPS]

    def check_log(self, grad_norm: float, *, last: bool) -> None:
        """Checks the norm that a log event reports: it must be finite, and not 0 in two log events or at the end."""
        self._grad_norm = grad_norm
        step = self._progress.step
        self._check_norm(step)
        self._num_zero = self._num_zero + 1 if grad_norm == 0 else 0
        if self._num_zero >= (1 if last else 2) and not self._warned_of_zero:
            self._warned_of_zero = True
            self._warn(
                "GRADIENT_ZERO",
                f"At step {step} the gradient is exactly 0, so that nothing is learned."
                f"{_listed(self.rows(step, None))}",
                "Check the base model's weights and these rows"
                + (f", or set {setting('hyperparameters.precision', 'bf16')}." if self._fp16 else "."),
            )

    def check_evaluation(self, loss: float) -> None:
        """Raises JobError("LOSS_NOT_FINITE") unless the loss on the held-out rows is finite."""
        step = self._progress.step
        if not math.isfinite(loss):
            self._check_norm(step)
            raise self._error(f"After step {step} the loss on the held-out rows is {loss:g}", None)

    def check_weights(self, model: Any) -> None:
        """Raises JobError("LOSS_NOT_FINITE") unless all trained weights, or this rank's shares of them, are finite.

        Reads all of them: call it before a checkpoint is written, which does so too.
        """
        trained = [share_of(parameter.detach()) for parameter in model.parameters() if parameter.requires_grad]
        # The sum of finite values may overflow, but min and max do not; NaN passes through both.
        finite = [_all_finite(each) for each in trained if each.numel()]
        if finite and not bool(torch.stack(finite).all()):
            step = self._progress.step
            raise self._error(f"After step {step} trained weights are NaN or infinite", step)

    @property
    def _fp16(self) -> bool:
        return self._hyper.precision == "fp16"

    def _is_finite(self, norm: Any) -> bool:
        return self._fp16 or norm is None or math.isfinite(float(norm))

    def _check_norm(self, step: int) -> None:
        if not self._is_finite(self._grad_norm):
            raise self._error(f"At step {step} the norm of the gradient is {float(self._grad_norm):g}", step)

    def _error(self, problem: str, step: int | None, micro_batch: int | None = None) -> JobError:
        rows = [] if step is None else self.rows(step, micro_batch)
        precision = {"fp16": "bf16", "bf16": "fp32"}.get(self._hyper.precision)
        other = f", or set {setting('hyperparameters.precision', precision)}" if precision else ""
        return JobError(
            "LOSS_NOT_FINITE",
            f"{problem}.{_listed(rows)} The checkpoints of earlier steps are kept.",
            "Lower hyperparameters.learning_rate, raise hyperparameters.warmup_steps"
            f"{other}. If it happens at the first steps or again with the same rows, check these rows.",
            [Violation(row, f"{problem}; this row was in the batch.") for row in rows],
        )

    def _warn(self, reason: str, message: str, advice: str) -> None:
        self._sink.emit(Warning(reason=reason, message=message, advice=advice))


def _all_finite(values: torch.Tensor) -> torch.Tensor:
    low, high = torch.aminmax(values)
    return (torch.isfinite(low) & torch.isfinite(high)).cpu()


def _listed(rows: Sequence[str]) -> str:
    if not rows:
        return ""
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return f" Rows: {', '.join(rows[:_NAMED])}{more}."
