"""Training with PyTorch's FSDP2: each rank has a share of every weight, gradient and state of the optimizer.

`fully_shard` is called here, not by accelerate, whose plugin trains with DistributedDataParallel on a CPU and says
nothing.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from engine.errors import JobError, Violation
from engine.model.heap import return_freed_memory
from engine.model.load import Device
from services.trainer.worker.divided import DividedTrainer
from services.trainer.worker.ranks import Ranks, share_of

_FIELD = "resources.parallelism"


def loaded_in_turn(load: Callable[[], Any], on: Device, ranks: Ranks) -> Any:
    """Returns this rank's shares, on its device, of the model that `load` reads into main memory.

    One rank after the other loads it, so that main memory holds one whole copy at a time, and a device never more than
    its shares and one block. Raises RuntimeError if what is trained begins with other weights on another rank, as an
    initial adapter might that is computed on another processor: the shares would be parts of different matrices.
    """
    # Some meshes are made by all ranks together.
    mesh = init_device_mesh(on, (ranks.world_size,))
    model: Any = None
    checksum = 0
    for turn in range(ranks.world_size):
        if turn == ranks.rank:
            model = load()
            checksum = _checksum(model)
            shard(model, mesh)
            return_freed_memory()
        ranks.wait_for_all()
    if ranks.highest(checksum) != -ranks.highest(-checksum):
        raise RuntimeError("the processes have computed different initial weights")
    return model


def _checksum(model: Any) -> int:
    """Returns a number of at most 48 bits, which a float holds exactly, for the bits of what is trained."""
    formats = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    trained = (parameter.detach() for parameter in model.parameters() if parameter.requires_grad)
    bits = (each.contiguous().view(formats[each.element_size()]) for each in trained)
    return sum(int(each.sum(dtype=torch.int64)) for each in bits) % 2**48


def shard(model: Any, mesh: DeviceMesh) -> None:
    """Divides the weights of a model in main memory among the ranks: blocks one by one, then what is outside them.

    Raises JobError("PARALLELISM_UNAVAILABLE") for a model without blocks, whose weights would all be gathered at once.
    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        message = "The base model has no blocks that fsdp could divide one by one."
        advice = f"Set {_FIELD} to zero2 or ddp, or remove it."
        raise JobError("PARALLELISM_UNAVAILABLE", message, advice, [Violation(f"spec.{_FIELD}", message)])
    for parameter in model.parameters():
        # What some initial adapters are made by, and fully_shard refuses.
        parameter.data = parameter.data.contiguous()
    # A block within a block comes first.
    for block in reversed(blocks):
        fully_shard(block, mesh=mesh)
        # autocast keeps its 16-bit copies of weights until the forward pass ends, which would be copies of all blocks.
        block.register_forward_hook(_forget_copies)
    fully_shard(model, mesh=mesh)
    check_sharded(model, mesh.size())


def check_sharded(model: Any, world_size: int) -> None:
    """Raises RuntimeError unless every weight of the model is divided among all ranks by FSDP."""
    if not isinstance(model, FSDPModule):
        raise RuntimeError(f"the model is a {type(model).__name__}, whose weights FSDP has not divided")
    named: Any = model
    for name, parameter in named.named_parameters():
        if not isinstance(parameter, DTensor) or parameter.device_mesh.size() != world_size:
            raise RuntimeError(f"FSDP has not divided {name} among {world_size} processes")


class FsdpTrainer(DividedTrainer):
    """A `Trainer` of a model whose weights are divided already, with those of the checkpoint to resume from.

    Gradients are summed and divided after every micro-batch: to keep them until the last one would take a whole copy.
    """

    wrapper = FSDPModule

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        """Does nothing: the shares are on their devices."""

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[Any, Any]:
        """Lets accelerate prepare the precision only: what it would wrap the model in is for whole weights."""
        # After a forward pass, what is outside the blocks is whole, and the optimizer would get it.
        model: Any = self.model
        model.reshard()
        self.is_distributed_loading_by_transformers = True
        try:
            prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        finally:
            self.is_distributed_loading_by_transformers = False
        check_sharded(self.model_wrapped, self._ranks.world_size)
        return prepared

    def _clip_grad_norm(self, model: Any) -> Any:
        return _whole(super()._clip_grad_norm(model))  # type: ignore[no-untyped-call]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is None:
            # Without a limit nothing is clipped.
            grad_norm = _whole(self.accelerator.clip_grad_norm_(model.parameters(), math.inf))
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without what accelerate wraps it in."""
        wrapped: Any = self.optimizer
        plain: torch.optim.Optimizer = wrapped.optimizer
        return plain

    def _states(self) -> dict[str, Any]:
        states = self._plain_optimizer.state_dict()
        own = {i: {name: share_of(value) for name, value in each.items()} for i, each in states["state"].items()}
        return states | {"state": own}

    def _load_states(self, states: dict[str, Any]) -> None:
        # The optimizer numbers its weights in this order.
        weights = [weight for group in self._plain_optimizer.param_groups for weight in group["params"]]
        divided = {
            index: {name: _divided(value, weights[index]) for name, value in values.items()}
            for index, values in states["state"].items()
        }
        self._plain_optimizer.load_state_dict(states | {"state": divided})

    def _weights(self) -> dict[str, torch.Tensor] | None:
        """Gathers one tensor after the other. The first rank has them all, in main memory."""
        model: Any = self.model
        adapters = hasattr(model, "peft_config")
        gathered: dict[int, torch.Tensor] = {}
        found = {}
        # Calling it also divides again what is outside the blocks, which stays whole after a forward pass.
        for name, value in model.state_dict(keep_vars=True).items():
            if adapters and not value.requires_grad:
                continue
            if id(value) not in gathered:
                whole = _whole(value.detach())
                gathered[id(value)] = whole.cpu() if self._ranks.first else whole.new_empty(0)
            # Tied weights stay one tensor.
            found[name] = gathered[id(value)]
        return found if self._ranks.first else None


@contextmanager
def leading(model: Any, ranks: Ranks) -> Iterator[None]:
    """Lets the first rank run forward passes alone, while all others `follow`."""

    def call(*_: Any) -> None:
        ranks.totals([1.0])

    # Before FSDP's own hook, which waits for the others.
    hook = model.register_forward_pre_hook(call, prepend=True)
    try:
        yield
    finally:
        hook.remove()
        ranks.totals([0.0])


def follow(model: Any, ranks: Ranks) -> None:
    """Takes part in the forward passes of the rank that is `leading`, which need this rank's shares of the weights.

    Nothing is made of the result, so that a pass computes one token, whatever the other rank computes.
    """
    token = torch.zeros((1, 1), dtype=torch.long, device=share_of(next(model.parameters())).device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        while any(ranks.totals([0.0])):
            model(input_ids=token, use_cache=False)
    model.train(was_training)


def _forget_copies(*_: Any) -> None:
    torch.clear_autocast_cache()


def _whole(tensor: Any) -> Any:
    """Gathers a tensor on every rank. Returns any other value unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _divided(value: Any, weight: Any) -> Any:
    """Returns a state of the optimizer as the share of a tensor that is divided like `weight`; a count unchanged."""
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return value
    return DTensor.from_local(
        value.to(weight.device),
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )
