"""The Trainer, with the loss that our events define: the mean over trained tokens."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.sft_trainer import SFTTrainer

from engine.config.curriculum import Curriculum
from engine.data.spans import IGNORED
from engine.model.hidden_states import hidden_states
from services.trainer.worker.events import TrainingCallback
from services.trainer.worker.extensions import Loss
from services.trainer.worker.label_smoothing import LabelSmoothing
from services.trainer.worker.order import GroupedByLength, PhaseByPhase, lengths, rows_of_step

_NOTHING: AbstractContextManager[list[torch.Tensor]] = nullcontext([])


class Trainer(SFTTrainer):
    """An `SFTTrainer` that scores trained positions only, weighs held-out tokens equally, and counts trained tokens."""

    compact_on_cpu = True
    """Passes only trained positions through the head, as TRL does on a GPU. Without it, sums have TRL's very bits."""

    def __init__(self, callback: TrainingCallback, curriculum: Curriculum | None, **arguments: Any) -> None:
        self._callback, self._curriculum = callback, curriculum
        self.smoothing: LabelSmoothing | None = None
        self.loss: Loss | None = None
        """Replaces the loss in training."""
        self.weights_loaded = False
        """True if the model has the weights of the checkpoint to resume from already."""
        self._nll: list[float] = []
        self._num_predicted: list[int] = []
        super().__init__(**arguments)

    def rows_of(self, step: int, micro_batch: int | None) -> list[int]:
        """Returns the indices in the training rows of a step, counted from 1, or of one of its micro-batches."""
        dataloader, accumulation = self.callback_handler.train_dataloader, self.args.gradient_accumulation_steps
        return rows_of_step(dataloader, accumulation, step, micro_batch)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Orders rows reproducibly for a resumed epoch. The library's shuffle is reproducible; its grouping is not."""
        grouped = self.args.train_sampling_strategy == "group_by_length"
        if self._curriculum:
            return PhaseByPhase(self._curriculum, lengths(self.train_dataset) if grouped else None, self.args.seed)
        if not grouped:
            return super()._get_train_sampler(train_dataset)
        rows_per_step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return GroupedByLength(lengths(self.train_dataset), rows_per_step, self.args.seed)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Returns the mean over the trained tokens of the step (`num_items_in_batch`) or, in evaluation, the batch."""
        training, predicted = model.training, inputs["labels"][:, 1:] != IGNORED
        if training:
            self._callback.forward()
        num_predicted = int(predicted.sum())
        num_rows, num_tokens = _size(inputs)
        num_padded_tokens = inputs["input_ids"].numel()
        if training and self.loss is not None:
            replaced = self.loss(model, inputs, num_items_in_batch or max(num_predicted, 1))
            self._callback.computed(replaced.item(), num_rows, num_tokens, num_padded_tokens)
            return replaced
        # With Triton, TRL skips untrained positions itself; on a CPU it would pass every position through the head,
        # which for short answers wastes most of the head's work.
        compact = self.compact_on_cpu and inputs["input_ids"].device.type == "cpu" and num_predicted > 0
        labels = inputs["labels"][:, 1:][predicted]
        if compact:
            inputs = {key: value for key, value in inputs.items() if key != "labels"} | {"shift_labels": labels[None]}
        smoothing = self.smoothing if training else None
        plain = self.accelerator.unwrap_model(self.model)
        collecting = hidden_states(plain, predicted, only=compact) if compact or smoothing else _NOTHING
        with collecting as hidden:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        if smoothing:
            loss = loss + smoothing.added_loss(hidden[0], labels) / (num_items_in_batch or max(num_predicted, 1))
        value = (loss[0] if return_outputs else loss).item()
        if training:
            self._callback.computed(value, num_rows, num_tokens, num_padded_tokens)
        else:
            self._nll.append(value * num_predicted)
            self._num_predicted.append(num_predicted)
        return loss

    def get_batch_samples(self, *arguments: Any) -> Any:
        """Fetches the rows of a step, and tells the callback before it does."""
        self._callback.loading()
        return super().get_batch_samples(*arguments)

    def training_step(self, *arguments: Any) -> torch.Tensor:
        """Runs the forward and backward pass of a micro-batch, and tells the callback after it has."""
        loss: torch.Tensor = super().training_step(*arguments)  # type: ignore[no-untyped-call]
        self._callback.backward_done()
        return loss

    def _get_grad_norm(self, *arguments: Any, **options: Any) -> Any:
        norm = super()._get_grad_norm(*arguments, **options)  # type: ignore[no-untyped-call]
        self._callback.health.check_gradient(norm)
        return norm

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Runs the library's loop, with a mean over tokens in place of the mean of the batches' means."""
        self._nll.clear()
        self._num_predicted.clear()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        total = max(sum(self._num_predicted), 1)
        (output.metrics or {})[f"{metric_key_prefix}_loss"] = sum(self._nll) / total
        for values in self._metrics["eval"].values():
            if len(values) == len(self._num_predicted):
                weighted = sum(v * n for v, n in zip(values, self._num_predicted, strict=True))
                values[:] = [weighted / total]
        return output

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.weights_loaded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self._callback.saving(last=self.control.should_training_stop):
            self._callback.health.check_weights(model)
            super()._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]

    def create_model_card(self, *arguments: Any, **options: Any) -> None:
        """Creates none: the package of stage 4 contains one with the final figures."""


def _size(inputs: dict[str, Any]) -> tuple[int, int]:
    """Returns rows and tokens of a batch without padding; packed rows count individually."""
    if "attention_mask" in inputs:
        return inputs["input_ids"].shape[0], int(inputs["attention_mask"].sum())
    return int((inputs["position_ids"] == 0).sum()), inputs["input_ids"].numel()
