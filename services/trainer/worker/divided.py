"""Trainings whose ranks each have a share of the optimizer's states, and write it to a file of their own."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch

from services.trainer.worker.checkpoint import SCHEDULER_FILE, optimizer_file
from services.trainer.worker.loss import Trainer


class DividedTrainer(Trainer):
    """A `Trainer` whose optimizer's states are divided among the ranks.

    Its checkpoints have the model in the usual files, written by the first rank, and one file for each rank with its
    share of the optimizer's states.
    """

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[Any, Any]:
        """Restores optimizer and schedule itself: the library would look for one file with all states."""
        prepared: tuple[Any, Any] = super()._prepare_for_training(max_steps, train_dataloader, None)  # type: ignore[no-untyped-call]
        if resume_from_checkpoint is not None:
            folder = Path(resume_from_checkpoint)
            file = folder / optimizer_file(self._ranks.rank)
            self._load_states(torch.load(file, map_location="cpu", weights_only=True))
            schedule: Any = self.lr_scheduler
            schedule.load_state_dict(torch.load(folder / SCHEDULER_FILE, weights_only=True))
            self._load_scaler(resume_from_checkpoint)
        return prepared

    @abstractmethod
    def _states(self) -> dict[str, Any]:
        """Returns this rank's share of the optimizer's states, as plain tensors."""

    @abstractmethod
    def _load_states(self, states: dict[str, Any]) -> None:
        """Restores what `_states` returned."""

    @abstractmethod
    def _weights(self) -> dict[str, torch.Tensor] | None:
        """Returns the weights to write, by name, on the first rank; None there stands for those of the model.

        Every rank calls it.
        """

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the model from the first rank."""
        weights = self._weights()
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self._states(), folder / optimizer_file(self._ranks.rank))
        if self._ranks.first:
            schedule: Any = self.lr_scheduler
            torch.save(schedule.state_dict(), folder / SCHEDULER_FILE)
