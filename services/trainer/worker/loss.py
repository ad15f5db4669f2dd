"""The Trainer, with the loss that our events define: the mean over trained tokens."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.nn.parallel import DistributedDataParallel
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.sft_trainer import SFTTrainer

from engine.config.curriculum import Curriculum
from engine.data.spans import IGNORED
from engine.model.hidden_states import hidden_states
from services.trainer.worker.corpus_rows import CorpusRows
from services.trainer.worker.events import TrainingCallback
from services.trainer.worker.extensions import Loss
from services.trainer.worker.label_smoothing import LabelSmoothing
from services.trainer.worker.order import GroupedByLength, Padded, PhaseByPhase, lengths, rows_of_step
from services.trainer.worker.ranks import Ranks

_NOTHING: AbstractContextManager[list[torch.Tensor]] = nullcontext([])


class Trainer(SFTTrainer):
    """An `SFTTrainer` that scores trained positions only, weighs held-out tokens equally, and counts trained tokens."""

    wrapper: type[Any] = DistributedDataParallel
    """What wraps the model of several ranks, which share gradients through it."""
    compact_on_cpu = True
    """Passes only trained positions through the head, as TRL does on a GPU. Without it, sums have TRL's very bits."""

    def __init__(
        self, callback: TrainingCallback, curriculum: Curriculum | None, ranks: Ranks, **arguments: Any
    ) -> None:
        """With several ranks, the last row of each dataset is the blank of `Padded`."""
        self._callback, self._curriculum, self._ranks = callback, curriculum, ranks
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
        return rows_of_step(dataloader, accumulation, self._ranks, step, micro_batch)

    def get_train_dataloader(self) -> Any:
        """Returns the library's data loader, whose order follows the epoch also where a resumed training skips rows."""
        dataloader: Any = super().get_train_dataloader()
        if self._ranks.world_size > 1:
            shard = dataloader.batch_sampler
            # accelerate does not pass the epoch on through the part that skips and the one that divides batches.
            shard.set_epoch = shard.batch_sampler.sampler.set_epoch
        return dataloader

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Orders rows reproducibly for a resumed epoch. The library's shuffle is reproducible; its grouping is not."""
        if isinstance(self.train_dataset, CorpusRows):
            return self.train_dataset.sampler()
        grouped = self.args.train_sampling_strategy == "group_by_length"
        num_rows = self._num_rows(self.train_dataset)
        counted = lengths(self.train_dataset)[:num_rows] if grouped else None
        rows_per_batch = self.args.per_device_train_batch_size * self._ranks.world_size
        order: Any
        if self._curriculum:
            order = PhaseByPhase(self._curriculum, counted, self.args.seed)
        elif counted is not None:
            rows_per_step = rows_per_batch * self.args.gradient_accumulation_steps
            order = GroupedByLength(counted, rows_per_step, self.args.seed)
        elif self._ranks.world_size == 1:
            return super()._get_train_sampler(train_dataset)
        else:
            # What accelerate makes of the library's shuffle.
            order = SeedableRandomSampler(range(num_rows), data_seed=self.args.data_seed)
        return order if self._ranks.world_size == 1 else Padded(order, num_rows, rows_per_batch)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if self._ranks.world_size == 1:
            return super()._get_eval_sampler(eval_dataset)
        num_rows = self._num_rows(eval_dataset)
        rows_per_batch = self.args.per_device_eval_batch_size * self._ranks.world_size
        return Padded(range(num_rows), num_rows, rows_per_batch)

    def _num_rows(self, dataset: Any) -> int:
        """Returns the number of rows without the blank one."""
        return len(dataset) - (self._ranks.world_size > 1)

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
        world_size = self._ranks.world_size
        num_rows, num_tokens = _size(inputs, blanks=world_size > 1)
        num_padded_tokens = inputs["input_ids"].numel()
        if training and self.loss is not None:
            replaced = self.loss(model, inputs, num_items_in_batch or max(num_predicted, 1))
            self._callback.computed(replaced.item(), num_rows, num_tokens, num_padded_tokens)
            # Gradients are averaged over the ranks, whose shares are to be added.
            return replaced * world_size
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
            added = smoothing.added_loss(hidden[0], labels) / (num_items_in_batch or max(num_predicted, 1))
            loss = loss + added * world_size
        value = (loss[0] if return_outputs else loss).item()
        if training:
            # TRL multiplies by the number of ranks, over which the gradients are averaged.
            self._callback.computed(value / world_size, num_rows, num_tokens, num_padded_tokens)
        else:
            # The mean over no token is not a number.
            self._nll.append(value * num_predicted if num_predicted else 0.0)
            self._num_predicted.append(num_predicted)
        return loss

    def get_batch_samples(self, *arguments: Any) -> Any:
        """Fetches the rows of a step, and tells the callback before it does."""
        self._callback.loading()
        return super().get_batch_samples(*arguments)

    def training_step(self, model: Any, *arguments: Any) -> torch.Tensor:
        """Runs the forward and backward pass of a micro-batch, and tells the callback after it has."""
        if self._ranks.world_size > 1 and not isinstance(model, self.wrapper):
            # Each rank would train a model of its own.
            raise RuntimeError(f"the model is a {type(model).__name__}, which shares no gradients")
        loss: torch.Tensor = super().training_step(model, *arguments)  # type: ignore[no-untyped-call]
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
        nll, *predicted = self._ranks.totals([sum(self._nll), *self._num_predicted])
        total = max(sum(predicted), 1)
        (output.metrics or {})[f"{metric_key_prefix}_loss"] = nll / total
        for values in self._metrics["eval"].values():
            if len(values) == len(predicted):
                weighted = sum(v * n for v, n in zip(values, predicted, strict=True))
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


def _size(inputs: dict[str, Any], *, blanks: bool) -> tuple[int, int]:
    """Returns rows and tokens of a batch without padding; packed rows count individually. With `blanks`, rows of one
    token, which predict nothing, are not counted."""
    if "attention_mask" in inputs:
        sizes = inputs["attention_mask"].sum(1)
    else:
        starts = torch.nonzero(inputs["position_ids"].flatten() == 0).flatten()
        sizes = torch.diff(starts, append=starts.new_tensor([inputs["position_ids"].numel()]))
    if blanks:
        sizes = sizes[sizes > 1]
    return len(sizes), int(sizes.sum())
