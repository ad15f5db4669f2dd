"""How much memory a training takes, part by part, at the moment when it takes most."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

from engine.config.job import JobConfig, Lora, Quantization
from engine.estimate.architecture import Architecture
from engine.estimate.saved_activations import BYTES, Adapters, Arithmetic, Batch, Method, Walk

Precision = Literal["fp32", "bf16", "fp16"]
Moment = Literal["loss", "backward", "step", "loading"]
GIB: Final = 2**30
MIB: Final = 2**20

# What a training process holds before there is a model: interpreter, torch, transformers, peft, trl and datasets;
# resident memory of the trainer's child, as measured (docs/estimates.md).
_PROCESS: Final = 540 * MIB
# On a CPU the C library's heap keeps memory of tensors that are gone and that the next ones do not fit into. Fitted to
# the trainings of docs/estimates.md, 4 to 30 blocks: a share of what all blocks give rise to, kept or made again, and
# of one block.
_HEAP_OF_ALL, _HEAP_OF_BLOCK = 0.45, 1.5
# On a GPU: the driver's context with the kernels that are loaded into it, and cuBLAS's workspace. Known by range
# (0.3 to 0.6 GiB by generation); the upper figure, since it cannot be had back.
_CONTEXT: Final = 600 * MIB

# The fused head scores tiles of so many positions by so many words (trl 1.16, kernels/chunked_logprob.py).
_TILE_POSITIONS, _TILE_WORDS = 4096, 32768
# Copies of a tile, in float32, that its backward pass holds where there is no Triton: five named ones, three on the
# way to the gradient, of which a mask has a byte a value.
_TILE_COPIES: Final = 7.25
# Of the widest tensor of a block, what a backward pass holds at once beyond what was kept: a gradient coming in, one
# going out, and one between.
_BLOCK_COPIES: Final = 3


@dataclass(frozen=True)
class Setup:
    """What of a job decides its memory, with nothing automatic left."""

    method: Method
    precision: Precision
    on_gpu: bool
    rows: int
    """Of a micro-batch."""
    length: int
    """Tokens of the longest row (of a pack, when rows are packed)."""
    checkpointing: bool
    optimizer: str
    lora: Lora = field(default_factory=Lora)
    quantization: Quantization = field(default_factory=Quantization)
    accumulation: int = 1
    trained_share: float = 1.0
    """Of the positions, those that are trained on and go through the head."""
    padded: bool = True
    """Whether rows of a micro-batch differ in length."""

    @classmethod
    def of(
        cls,
        config: JobConfig,
        *,
        on_gpu: bool,
        length: int,
        method: Method | None = None,
        checkpointing: bool | None = None,
        trained_share: float = 1.0,
    ) -> "Setup":
        """That of a job whose longest row has `length` tokens. `method` and `checkpointing` replace the job's own;
        automatic values become what preflight would choose."""
        hyper = config.hyperparameters
        chosen: Method = method or ("lora" if config.method == "auto" else config.method)
        default_precision: Precision = "bf16" if on_gpu else "fp32"
        own = hyper.gradient_checkpointing if checkpointing is None else checkpointing
        packed = hyper.packing
        return cls(
            method=chosen,
            precision=default_precision if hyper.precision == "auto" else hyper.precision,
            on_gpu=on_gpu,
            rows=hyper.per_device_train_batch_size,
            length=hyper.max_length if packed else min(length, hyper.max_length),
            checkpointing=True if own is None else own,
            optimizer=chosen_optimizer(hyper.optim, chosen, on_gpu=on_gpu),
            lora=config.lora,
            quantization=config.quantization,
            accumulation=hyper.gradient_accumulation_steps,
            trained_share=trained_share,
            padded=packed or hyper.per_device_train_batch_size > 1,
        )

    @property
    def trains_adapters(self) -> bool:
        return self.method != "full"

    @property
    def batch(self) -> Batch:
        return Batch(self.rows, self.length, self.padded)

    @property
    def positions(self) -> int:
        """Positions of a micro-batch that go through the head."""
        return max(1, math.ceil(self.rows * (self.length - 1) * self.trained_share))

    @property
    def arithmetic(self) -> Arithmetic:
        lower = None if self.precision == "fp32" else BYTES[self.precision]
        if self.method == "qlora":
            # peft's preparation makes every weight that is not quantised float32.
            return Arithmetic(4, lower, self.quantization.bits)
        # A CPU computes in 16 bits, where it does, on float32 weights; so does a GPU when the weights are trained.
        wide = not self.on_gpu or self.method == "full" or lower is None
        return Arithmetic(4 if wide else lower or 4, lower)


def chosen_optimizer(asked: str, method: Method, *, on_gpu: bool) -> str:
    """What preflight puts in the place of `auto`."""
    if asked != "auto":
        return asked
    return "paged_adamw_8bit" if method == "qlora" and on_gpu else "adamw_torch"


@dataclass(frozen=True)
class Component:
    """One part of the memory."""

    name: str
    size_bytes: int
    what: str
    """In a few words."""
    uncertainty: float
    """By how much of itself it may be larger, as a share; docs/estimates.md says how often it was."""

    @property
    def upper_bytes(self) -> int:
        return math.ceil(self.size_bytes * (1 + self.uncertainty))


@dataclass(frozen=True)
class Memory:
    """What a training takes at the moment when it takes most."""

    components: tuple[Component, ...]
    upper_bytes: int
    """What the total stays below at every moment: the figure that a verdict is made with."""
    moment: Moment
    """`loss`: the pass has reached the head and everything is kept. `backward`: inside a block. `step`: the optimizer
    moves the weights. `loading`: the weights are read."""

    @cached_property
    def total_bytes(self) -> int:
        return sum(component.size_bytes for component in self.components)

    def __getitem__(self, name: str) -> int:
        """Bytes of a component; 0 for one that there is not."""
        return sum(component.size_bytes for component in self.components if component.name == name)


class Estimator:
    """The memory of one setup on one architecture. Every figure is in bytes."""

    def __init__(self, architecture: Architecture, setup: Setup) -> None:
        self._a, self._s = architecture, setup
        self._adapters = (
            Adapters(architecture.targets(setup.lora.target_modules), setup.lora.r, setup.lora.lora_dropout)
            if setup.trains_adapters
            else None
        )

    @cached_property
    def num_adapter_parameters(self) -> int:
        """A rank-r adapter on a layer of m rows and n columns has r·(m + n) parameters."""
        return sum(rows * columns for rows, columns in self._adapter_tensors())

    @cached_property
    def num_trained_parameters(self) -> int:
        return sum(rows * columns for rows, columns in self._trained_tensors())

    @cached_property
    def weights(self) -> int:
        """The base model's weights as they are held while training."""
        plain = self._a.num_parameters * self._s.arithmetic.weights
        if self._s.method != "qlora":
            return plain
        quantised = self._a.num_linear_weights
        return plain - quantised * self._s.arithmetic.weights + self._quantised_bytes

    @cached_property
    def _quantised_bytes(self) -> int:
        return self._a.layers * sum(
            quantised_bytes(layer.rows, layer.columns, self._s.quantization) for layer in self._a.linears
        )

    @cached_property
    def adapters(self) -> int:
        return 4 * self.num_adapter_parameters

    @cached_property
    def gradients(self) -> int:
        """In the format of what is trained: float32."""
        return 4 * self.num_trained_parameters

    @cached_property
    def optimizer(self) -> int:
        tensors, name = self._trained_tensors(), self._s.optimizer
        if self._s.trains_adapters or not name.endswith("8bit"):
            return sum(optimizer_bytes(name, rows, columns) for rows, columns in tensors)
        # The Trainer keeps the embedding's states, which come first, in float32.
        embedding, *rest = tensors
        return optimizer_bytes("adamw_torch", *embedding) + sum(optimizer_bytes(name, *shape) for shape in rest)

    @cached_property
    def block_kept(self) -> tuple[int, int]:
        """What the first block and every other one keep for the backward pass when nothing is recomputed."""
        reached = not self._s.trains_adapters or self._s.checkpointing
        return self._walk.block(reached=reached), self._walk.block(reached=True)

    @cached_property
    def kept(self) -> int:
        """What autograd saves from the blocks and the last norm until the backward pass; with checkpointing that is
        each block's input alone."""
        batch = self._s.batch
        ids = 0 if self._s.trains_adapters else 8 * batch.tokens
        ends = ids + self._walk.last_norm()
        if self._s.checkpointing:
            return ends + self._a.layers * batch.tokens * self._a.hidden * self._s.arithmetic.stream
        first, other = self.block_kept
        return ends + self._angles + first + (self._a.layers - 1) * other

    @cached_property
    def carried(self) -> int:
        """What recomputation needs besides, and autograd does not see: the mask and the angles of the rotation."""
        batch = self._s.batch
        mask = batch.rows * batch.length**2 if batch.padded else 0
        return mask + self._angles if self._s.checkpointing else 0

    @property
    def _angles(self) -> int:
        if self._a.family != "decoder":
            return 0
        return 2 * self._s.length * self._a.head_dim * self._s.arithmetic.stream

    @cached_property
    def head_kept(self) -> int:
        """What the head keeps: the hidden states of the positions it scores, and a few numbers for each."""
        return self._s.positions * (self._a.hidden * self._s.arithmetic.stream + 8 + 4)

    @cached_property
    def head_workspace(self) -> int:
        """The head's tile of logits, and on a CPU the copies its backward pass makes of it."""
        positions, words = min(self._s.positions, _TILE_POSITIONS), min(self._a.vocabulary, _TILE_WORDS)
        lower = self._s.arithmetic.autocast or self._s.arithmetic.stream
        tile = positions * words
        gradient = 4 * self._s.positions * self._a.hidden
        slice_ = words * self._a.hidden * lower if lower != self._s.arithmetic.weights else 0
        if self._s.on_gpu:
            return tile * lower + slice_ + gradient
        widened = 4 * (tile + words * self._a.hidden) if lower != 4 else 0
        return int(tile * (lower + 4 * _TILE_COPIES)) + slice_ + widened + gradient

    @cached_property
    def block_workspace(self) -> int:
        """Of a block's backward pass."""
        batch, a = self._s.batch, self._a
        wide = max(a.feed_forward * max(a.experts_per_token, 1), a.heads * a.head_dim, a.hidden)
        value = 4 if self._s.trains_adapters else self._s.arithmetic.autocast or 4
        widest = batch.tokens * wide * value
        if a.softcap:
            widest = max(widest, a.heads * batch.rows * batch.length**2 * 4)
        # A quantised weight is expanded for the product it takes part in.
        largest = max(layer.num_weights for layer in a.linears)
        expanded = largest * (self._s.arithmetic.autocast or 4) if self._s.method == "qlora" else 0
        return _BLOCK_COPIES * widest + expanded

    @cached_property
    def step_workspace(self) -> int:
        """Of the optimizer: the root of the second moment and what it divides, for one tensor after the other, or
        on a GPU for all at once."""
        sizes = [4 * rows * columns for rows, columns in self._trained_tensors()]
        if self._s.optimizer in ("adamw_torch_fused", "sgd") or self._s.optimizer.endswith("bit"):
            return 0
        return sum(sizes) if self._s.on_gpu and self._s.optimizer == "adamw_torch" else 2 * max(sizes, default=0)

    @cached_property
    def process(self) -> int:
        """What is there without a model: on a GPU its context, on a CPU the program."""
        if self._s.on_gpu:
            return _CONTEXT
        return _PROCESS

    def memory(self) -> Memory:
        """At the moment when it takes most."""
        moments = [(name, self._components(*sizes)) for name, *sizes in self._moments()]
        moment, components = max(moments, key=lambda m: sum(part.size_bytes for part in m[1]))
        upper = max(sum(part.upper_bytes for part in parts) for _, parts in moments)
        return Memory(tuple(part for part in components if part.size_bytes), upper, moment)

    def _components(self, gradients: int, activations: int, logits: int, workspace: int) -> list[Component]:
        s, slack = self._s, 0.10 if self._s.on_gpu else 0.08
        held = f"{s.quantization.bits} bits and their scales, the rest float32" if s.method == "qlora" else "as trained"
        parts = [
            Component("weights", self.weights, f"the base model: {held}", 0.01),
            Component("adapters", self.adapters, f"float32, rank {s.lora.r}", 0.01),
            Component("gradients", gradients, "of what is trained, float32", 0.01),
            Component("optimizer", self.optimizer, f"the states of {s.optimizer}", 0.01),
            Component("activations", activations, "kept for the backward pass", slack),
            Component("logits", logits, "a tile of the head and its copies", slack),
            Component("workspace", workspace, "of the backward pass or the optimizer's step", 0.25),
            Component("process", self.process, "GPU context" if s.on_gpu else "interpreter and libraries", 0.08),
        ]
        if s.on_gpu:
            used = sum(part.size_bytes for part in parts[:-1])
            what = "what the allocator reserves beyond what is used"
            # Blocks are rounded up and holes stay between them: a tenth at most in common trainings, half of it here.
            parts.append(Component("fragmentation", used // 20, what, 1.0))
        elif activations:
            first, other = self.block_kept
            lost = _HEAP_OF_ALL * (first + (self._a.layers - 1) * other) + _HEAP_OF_BLOCK * max(first, other)
            what = "what the heap keeps of tensors that are gone"
            parts.append(Component("fragmentation", int(lost), what, 0.6))
        return parts

    def _moments(self) -> Iterable[tuple[Moment, int, int, int, int]]:
        """(moment, gradients, activations, logits, workspace) at each moment that can be the highest."""
        s, everything = self._s, self.gradients
        # Adapters' gradients are small and counted always; those of all weights come as activations go.
        before = everything if s.trains_adapters or s.accumulation > 1 else 0
        head = 0 if s.trains_adapters else 4 * self._a.num_embedding_weights
        kept = self.kept + self.carried + self.head_kept
        block = max(self.block_kept) if s.checkpointing else 0
        yield "loss", max(before, head), kept, self.head_workspace, 0
        yield "backward", max(before, head), kept + block, 0, self.block_workspace
        yield "backward", everything, max(self.block_kept), 0, self.block_workspace
        yield "step", everything, 0, 0, self.step_workspace

    @cached_property
    def _walk(self) -> Walk:
        return Walk(self._a, self._s.batch, self._s.arithmetic, self._adapters, self._s.on_gpu)

    def _adapter_tensors(self) -> list[tuple[int, int]]:
        if self._adapters is None:
            return []
        r = self._adapters.r
        shapes = [shape for layer in self._adapters.targets for shape in ((r, layer.columns), (layer.rows, r))]
        if self._s.lora.bias == "all":
            shapes += [(1, layer.rows) for layer in self._a.linears if layer.bias]
        elif self._s.lora.bias == "lora_only":
            shapes += [(1, layer.rows) for layer in self._adapters.targets if layer.bias]
        return shapes * self._a.layers

    def _trained_tensors(self) -> list[tuple[int, int]]:
        return self._adapter_tensors() if self._s.trains_adapters else list(self._a.tensors)


def estimate_memory(architecture: Architecture, setup: Setup) -> Memory:
    """The memory that `setup` takes on `architecture`."""
    return Estimator(architecture, setup).memory()


def quantised_bytes(rows: int, columns: int, quantization: Quantization) -> int:
    """Of one linear layer's weight.

    8 bits: a byte a weight, and a float32 scale a row (LLM.int8). 4 bits: half a byte, and one scale for 64 weights:
    float32, or with double quantisation a byte and, for 256 scales, another float32 (QLoRA, arXiv 2305.14314, sec. 3);
    its code books of 16 and 256 float32 and the mean of the scales come once a layer.
    """
    weights = rows * columns
    if quantization.bits == 8:
        return weights + 4 * rows
    scales = math.ceil(weights / 64)
    if not quantization.bnb_4bit_use_double_quant:
        return math.ceil(weights / 2) + 4 * scales + 4 * 16
    return math.ceil(weights / 2) + scales + 4 * math.ceil(scales / 256) + 4 * (16 + 256 + 1)


def optimizer_bytes(name: str, rows: int, columns: int) -> int:
    """State of one tensor. AdamW has two moments: float32, or in its 8-bit form a byte each and a float32 scale for 256
    values (arXiv 2110.02861), though tensors below 4,096 values stay float32. Adafactor keeps the mean square of every
    row and column (arXiv 1804.04235). Plain SGD keeps nothing."""
    values = rows * columns
    match name:
        case "sgd":
            return 0
        case "adafactor":
            return 4 * (values if rows == 1 else rows + columns)
        case "adamw_8bit" | "paged_adamw_8bit" if values >= 4096:
            return 2 * (values + 4 * math.ceil(values / 256))
    return 8 * values
