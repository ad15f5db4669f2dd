"""Divides the memory of a training among the processes that share it, and estimates what they send each other.

Sources: ZeRO, arXiv 1910.02054 (stages 2 and 3: sec. 5, volumes: sec. 7); ZeRO-Offload, arXiv 2101.06840; PyTorch FSDP,
arXiv 2304.11277; PyTorch DDP, arXiv 2006.15704; DeepSpeed 0.19, `runtime/zero/stage_1_and_2.py`.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

from engine.config.conflicts import DIVISIBLE_OPTIMIZERS
from engine.config.deepspeed import BUCKET_ELEMENTS
from engine.config.job import JobConfig

Parallelism = Literal["ddp", "zero2", "fsdp", "zero2_offload", "zero3", "zero3_offload"]
"""How processes share a training. The last two are estimated for comparison only; no job can have them."""

ORDER: Final[tuple[Parallelism, ...]] = ("ddp", "zero2", "fsdp", "zero2_offload")
"""The order in which an automatic choice tries them: docs/estimates.md has the reasons."""

# Buffers that NCCL allocates in each process for its channels: 4 MiB each (NCCL_BUFFSIZE), for up to 32 channels in two
# directions. Gloo has none worth counting.
_NCCL_BYTES: Final = 256 * 2**20
# Bytes per second between two GPUs: PCIe 3.0 x16, without a direct connection. NVLink is 5 to 40 times as fast.
_GPU_BANDWIDTH: Final = 10e9
# The same between two processes on one CPU, through the loopback interface.
_CPU_BANDWIDTH: Final = 1e9
# Bytes per second of main memory for the optimizer's step on the processor, and the bytes that AdamW reads and writes
# for each parameter: weight, two moments, gradient.
_HOST_BANDWIDTH: Final = 20e9
_ADAMW_TRAFFIC: Final = 28


@dataclass(frozen=True)
class Whole:
    """What a training on one device holds at one moment; sizes in bytes, others are numbers of parameters."""

    weights: int
    """The base model's weights."""
    adapters: int
    gradients: int
    """Gradients at this moment, float32."""
    optimizer: int
    trained: int
    """Trained parameters."""
    trains_base: bool
    """True if the base weights are trained, which are float32."""
    value: int
    """Bytes of a value in the number format of the computation."""
    block: int
    """Parameters of a block, without adapters."""
    ends: int
    """Parameters outside the blocks: embedding, head, last norm."""
    blocks: int
    """Number of blocks."""

    @property
    def parameters(self) -> int:
        """Number of the base model's parameters."""
        return self.blocks * self.block + self.ends

    @property
    def stored(self) -> int:
        """Bytes of a base weight that is not quantized."""
        return self.weights // max(self.parameters, 1)


@dataclass(frozen=True)
class Share:
    """What one process holds of them, in bytes."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    gathered: int = 0
    """Parameters of other processes, while they are used."""
    buffers: int = 0
    """Buffers of the communication."""
    host: int = 0
    """Main memory that all processes of the node take together for states that are not on the device."""


def share(whole: Whole, parallelism: Parallelism, world_size: int, *, stepping: bool = False) -> Share:
    """Returns the share of one of `world_size` processes; `stepping`: the moment is the optimizer's step.

    One process with `ddp` holds the whole.
    """
    if parallelism == "ddp":
        # The buckets that gradients are averaged in are a copy of them: gradient_as_bucket_view is off in torch and in
        # accelerate.
        buckets = 4 * whole.trained if world_size > 1 else 0
        return Share(whole.weights, whole.adapters, whole.gradients, whole.optimizer, buffers=buckets)
    if parallelism == "fsdp":
        return _fsdp(whole, world_size)
    return _zero(whole, parallelism, world_size, stepping)


def _fsdp(whole: Whole, world_size: int) -> Share:
    """Every tensor is divided, and gathered in its own format: autocast makes the 16-bit copies as on one device.

    A block is gathered while the one before it still runs; what is outside the blocks stays gathered from the forward
    to the backward pass.
    """
    gathered, reduced = _in_use(whole, whole.stored, 4)
    return Share(
        _part(whole.weights, world_size),
        _part(whole.adapters, world_size),
        _part(whole.gradients, world_size),
        _part(whole.optimizer, world_size),
        gathered,
        reduced,
    )


def _zero(whole: Whole, parallelism: Parallelism, world_size: int, stepping: bool) -> Share:
    """Each process has a float32 copy of its part of the trained parameters.

    With stage 2 these are float32 here; with stage 3 they would have the format of the computation, as in DeepSpeed.
    Without offloading, a process copies the gradients of its part into one float32 tensor for the step.
    """
    stage3, offload = parallelism.startswith("zero3"), parallelism.endswith("offload")
    value = whole.value if stage3 else 4
    weights = whole.weights * value // 4 if whole.trains_base else whole.weights
    adapters = whole.adapters * value // 4
    states = whole.optimizer + 4 * whole.trained
    gradients = _part(whole.gradients * value // 4, world_size)
    if stepping:
        gradients = _part((value + 4) * whole.trained, world_size)
    host = 0
    if offload:
        # Gradients leave the device bucket by bucket. In main memory: states, float32 gradients, and a copy of the
        # parameters in their format.
        host = states + (4 + value) * whole.trained
        states = gradients = 0
    gathered = 0
    if stage3:
        gathered, _ = _in_use(whole, whole.value, whole.value)
        if offload:
            host += weights
        weights, adapters = (0, 0) if offload else (_part(weights, world_size), _part(adapters, world_size))
    # Of stage 3 two, so that one is filled while the other is sent (`overlap_comm`).
    buckets = (2 if stage3 else 1) * BUCKET_ELEMENTS * value
    return Share(weights, adapters, gradients, _part(states, world_size), gathered, buckets, host)


def _in_use(whole: Whole, base: int, trained: int) -> tuple[int, int]:
    """Returns the bytes of the parameters of two blocks and both ends, and of their gradients while they are whole.

    `base`, `trained`: bytes of a base weight, and of an adapter weight or a gradient.
    """
    trained_block = whole.block if whole.trains_base else math.ceil(whole.trained / max(whole.blocks, 1))
    trained_ends = whole.ends if whole.trains_base else 0
    adapters = 0 if whole.trains_base else trained_block
    gathered = base * (2 * whole.block + whole.ends) + trained * 2 * adapters
    return gathered, trained * (2 * trained_block + trained_ends)


def connection_bytes(world_size: int, *, on_gpu: bool) -> int:
    """Returns the bytes that the connection itself takes in each process."""
    return _NCCL_BYTES if on_gpu and world_size > 1 else 0


def exchange_seconds(
    whole: Whole, parallelism: Parallelism, world_size: int, micro_batches: int, *, on_gpu: bool
) -> float:
    """Returns the time of one optimizer step that goes into exchanging and, with offloading, updating parameters.

    As if nothing was computed meanwhile: in fact most of it overlaps with the backward pass. `micro_batches`: those of
    one process.
    """
    part = (world_size - 1) / world_size
    trained, bandwidth = whole.trained, _GPU_BANDWIDTH if on_gpu else _CPU_BANDWIDTH
    if parallelism == "ddp":
        # A ring sends everything twice. Only the last micro-batch of a step does.
        return 2 * part * 4 * trained / bandwidth
    value = whole.value if parallelism.startswith("zero3") else 4
    reduced = value * trained * micro_batches
    if parallelism == "fsdp" or parallelism.startswith("zero3"):
        parameters = (whole.stored if parallelism == "fsdp" else value) * whole.parameters
        seconds = part * (2 * parameters * micro_batches + reduced) / bandwidth
    else:
        seconds = part * (reduced + value * trained) / bandwidth
    if parallelism.endswith("offload"):
        seconds += (reduced + value * trained) / world_size / bandwidth
        seconds += _ADAMW_TRAFFIC * trained / _HOST_BANDWIDTH
    return seconds


def obstacle(
    parallelism: Parallelism, *, method: str, precision: str, optimizer: str, on_gpu: bool, deepspeed: bool
) -> str:
    """Returns why a training cannot be divided in this way, as a clause; empty if it can."""
    if parallelism == "ddp":
        return ""
    if optimizer not in ("auto", *DIVISIBLE_OPTIMIZERS):
        return f"the states of {optimizer} cannot be divided; adamw_torch's can"
    if parallelism == "fsdp":
        if method == "qlora":
            return "quantized weights are stored as whole numbers, which FSDP does not divide"
        return ""
    if not deepspeed:
        return "the package deepspeed is not installed on this node; the operator can install the extra `deepspeed`"
    if precision == "fp16":
        return "DeepSpeed would clip gradients by a norm that includes fp16's loss scale"
    if parallelism.startswith("zero3") and method == "qlora":
        return "ZeRO-3 does not divide quantized weights"
    if parallelism.endswith("offload") and not on_gpu:
        return "on a CPU the states are in main memory already"
    return ""


def eligible(config: JobConfig, method: str, *, on_gpu: bool, deepspeed: bool) -> list[Parallelism]:
    """Returns the ways in which a job may be divided, in the order they are tried: the one that it names, or those that
    its settings and the node allow.

    On a CPU, whose memory the processes share, `fsdp` is not tried: one process would need no more, and gather nothing.
    """
    asked = config.resources.parallelism
    if asked != "auto":
        return [asked]
    if config.world_size == 1:
        return ["ddp"]
    hyper = config.hyperparameters
    given = {"method": method, "precision": hyper.precision, "optimizer": hyper.optim}
    return [
        way
        for way in ORDER
        if (on_gpu or way != "fsdp") and not obstacle(way, **given, on_gpu=on_gpu, deepspeed=deepspeed)
    ]


def _part(size: int, world_size: int) -> int:
    return math.ceil(size / world_size)
