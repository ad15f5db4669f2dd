"""Training with DeepSpeed's ZeRO stage 2: each rank has a share of the gradient and of the optimizer's states.

DeepSpeed is an optional package.
"""

import os
from types import MethodType
from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32

from services.trainer.worker.divided import DividedTrainer


def import_deepspeed(on: str) -> type[Any]:
    """Imports DeepSpeed for a device, "cpu" or "cuda", and returns what it wraps a model in.

    Call it before the Trainer's arguments are made: accelerate imports it then.
    """
    # Without it, DeepSpeed guesses by what is installed.
    os.environ["DS_ACCELERATOR"] = on
    import deepspeed

    # It would be compiled at the start of every training, for sums on a CPU that gloo computes as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine: type[Any] = deepspeed.DeepSpeedEngine
    return engine


class ZeroTrainer(DividedTrainer):
    """A `Trainer` whose model is wrapped by DeepSpeed.

    Its checkpoints are not DeepSpeed's own ones, which would contain the trained weights once more, and pickles that it
    loads unchecked.
    """

    def __init__(self, *arguments: Any, wrapper: type[Any], computes_in: torch.dtype | None, **options: Any) -> None:
        """`wrapper`: what `import_deepspeed` returned; `computes_in`: number format of the computation, None: that of
        the weights."""
        self.wrapper, self._computes_in = wrapper, computes_in
        super().__init__(*arguments, **options)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[Any, Any]:
        """Restores the weights first, as DeepSpeed copies the share of them that this rank updates."""
        if resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint)
        if self._computes_in is not None:
            _compute_in(self.model, self._computes_in, self.args.device.type)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self._report_updates()
        return prepared

    def _report_updates(self) -> None:
        """Tells the callback when the last backward pass of a step is done: DeepSpeed updates the weights right after
        it, within `training_step`."""
        update = self._engine.step

        def step(*arguments: Any, **options: Any) -> None:
            self._callback.backward_done()
            update(*arguments, **options)

        self._engine.step = step

    @property
    def _engine(self) -> Any:
        """The model as DeepSpeed has wrapped it."""
        return self.model_wrapped

    def _states(self) -> dict[str, Any]:
        states: dict[str, Any] = self._engine.optimizer.optimizer.state_dict()
        return states

    def _load_states(self, states: dict[str, Any]) -> None:
        self._engine.optimizer.optimizer.load_state_dict(states)

    def _weights(self) -> dict[str, torch.Tensor] | None:
        model: Any = self.model
        # The library would copy all weights on every rank.
        copies = self._ranks.first and not hasattr(model, "peft_config")
        return _in_main_memory(model.state_dict()) if copies else None


def _compute_in(model: Any, dtype: torch.dtype, on: str) -> None:
    """Lets a model compute in a number format other than its weights', as accelerate does without DeepSpeed."""
    forward = torch.autocast(on, dtype)(model.forward.__func__)
    model.forward = MethodType(convert_outputs_to_fp32(forward), model)


def _in_main_memory(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns weights whose file can be written without memory of a GPU. Tied ones stay one tensor."""
    copies: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for tensor in weights.values():
        place = tensor.data_ptr(), tensor.shape
        if place not in copies:
            copies[place] = tensor.cpu()
    return {name: copies[tensor.data_ptr(), tensor.shape] for name, tensor in weights.items()}
