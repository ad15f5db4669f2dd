"""Estimates the peak memory of a training, component by component."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Final, Literal

from engine.config.job import JobConfig, Lora, Quantization
from engine.estimate.architecture import Architecture
from engine.estimate.parallelism import Parallelism, Whole, connection_bytes, share
from engine.estimate.saved_activations import BYTES, Adapters, Arithmetic, Batch, Method, SavedActivations

Precision = Literal["fp32", "bf16", "fp16"]
Moment = Literal["loss", "backward", "step", "loading"]
GIB: Final = 2**30
MIB: Final = 2**20

# Memory of a training process before a model is loaded: interpreter, torch, transformers, peft, trl and datasets;
# resident memory of the trainer's child. The same code and versions took 540 and 590 MiB on two machines
# (docs/estimates.md).
_PROCESS: Final = 570 * MIB
# On a CPU the C library's heap keeps the memory of freed tensors that later tensors do not fit into. Fitted to the
# trainings of docs/estimates.md, 4 to 30 blocks: a share of the activations of all blocks, saved or recomputed, and of
# those of one block.
_HEAP_OF_ALL, _HEAP_OF_BLOCK = 0.45, 1.5
# The first share for adapters of INL blocks: their gradients, which are summed over the steps of a block, lie between
# the tensors of each step.
_HEAP_OF_ALL_INL_ADAPTERS: Final = 1.0
# Tensors above this size are never in the heap (glibc's DEFAULT_MMAP_THRESHOLD_MAX), and what lies between two tensors
# that stay, which are the gradients, is lost only if it is smaller than one that is needed. This limits the estimate
# for INL models, whose blocks save so many tensors. That of others is not limited: none so large was measured.
_LARGEST_IN_HEAP: Final = 32 * MIB
# On a GPU: the driver's context with the kernels that are loaded into it, and cuBLAS's workspace. Known by range
# (0.3 to 0.6 GiB by generation); the upper figure, because this memory is never freed.
_CONTEXT: Final = 600 * MIB

# Size of the tiles in which the fused head computes logits: positions by vocabulary entries (trl 1.16,
# kernels/chunked_logprob.py).
_TILE_POSITIONS, _TILE_WORDS = 4096, 32768
# Copies of a tile, in float32, that its backward pass holds without Triton: five named tensors, and three temporary
# ones for the gradient, one of which is a mask of one byte a value.
_TILE_COPIES: Final = 7.25
# Copies of a block's widest tensor that its backward pass holds beside the saved activations: the incoming gradient,
# the outgoing one, and one in between.
_BLOCK_COPIES: Final = 3


@dataclass(frozen=True)
class Setup:
    """The settings of a job that decide its memory, without automatic values."""

    method: Method
    precision: Precision
    on_gpu: bool
    rows: int
    """Rows of a micro-batch."""
    length: int
    """Tokens of the longest row, or of a pack if rows are packed."""
    checkpointing: bool
    optimizer: str
    lora: Lora = field(default_factory=Lora)
    quantization: Quantization = field(default_factory=Quantization)
    accumulation: int = 1
    trained_share: float = 1.0
    """Share of the positions that are trained on; only these go through the head."""
    padded: bool = True
    """True if rows of a micro-batch may differ in length."""
    world_size: int = 1
    """Processes that share the training, each with its own device and micro-batches."""
    parallelism: Parallelism = "ddp"

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
        parallelism: Parallelism | None = None,
    ) -> "Setup":
        """Returns the setup of a job whose longest row has `length` tokens.

        `method`, `checkpointing` and `parallelism` replace the job's own. Automatic values become those that preflight
        chooses, except that several processes train with ddp.
        """
        hyper = config.hyperparameters
        chosen: Method = method or ("lora" if config.method == "auto" else config.method)
        default_precision: Precision = "bf16" if on_gpu else "fp32"
        own = hyper.gradient_checkpointing if checkpointing is None else checkpointing
        packed = bool(hyper.packing)
        asked = config.resources.parallelism
        shared: Parallelism = parallelism or ("ddp" if asked == "auto" else asked)
        return cls(
            method=chosen,
            precision=default_precision if hyper.precision == "auto" else hyper.precision,
            on_gpu=on_gpu,
            rows=hyper.micro_batch,
            length=hyper.max_length if packed else min(length, hyper.max_length),
            checkpointing=True if own is None else own,
            optimizer=chosen_optimizer(hyper.optim, chosen, on_gpu=on_gpu, parallelism=shared),
            lora=config.lora,
            quantization=config.quantization,
            accumulation=hyper.accumulation,
            trained_share=trained_share,
            padded=packed or hyper.micro_batch > 1,
            world_size=config.world_size,
            parallelism=shared,
        )

    @property
    def trains_adapters(self) -> bool:
        return self.method != "full"

    @property
    def batch(self) -> Batch:
        return Batch(self.rows, self.length, self.padded)

    @property
    def positions(self) -> int:
        """Number of positions of a micro-batch that go through the head."""
        return max(1, math.ceil(self.rows * (self.length - 1) * self.trained_share))

    @property
    def arithmetic(self) -> Arithmetic:
        lower = None if self.precision == "fp32" else BYTES[self.precision]
        if self.method == "qlora":
            # peft's preparation for k-bit training converts every unquantised weight to float32.
            return Arithmetic(4, lower, self.quantization.bits)
        # With 16-bit precision a CPU still holds float32 weights; so does a GPU when the weights are trained.
        wide = not self.on_gpu or self.method == "full" or lower is None
        return Arithmetic(4 if wide else lower or 4, lower)


def chosen_optimizer(asked: str, method: Method, *, on_gpu: bool, parallelism: Parallelism = "ddp") -> str:
    """Returns the optimizer that preflight chooses for `auto`; any other name unchanged."""
    if asked != "auto":
        return asked
    return "paged_adamw_8bit" if method == "qlora" and on_gpu and parallelism == "ddp" else "adamw_torch"


@dataclass(frozen=True)
class Component:
    """One component of the memory."""

    name: str
    size_bytes: int
    description: str
    """Description of a few words."""
    uncertainty: float
    """Share of itself by which the component may be larger; docs/estimates.md has the measured errors."""

    @property
    def upper_bytes(self) -> int:
        return math.ceil(self.size_bytes * (1 + self.uncertainty))


@dataclass(frozen=True)
class Memory:
    """The peak memory of a training, in each of its processes."""

    components: tuple[Component, ...]
    upper_bytes: int
    """Upper bound of the total at every moment; verdicts compare it with the usable memory."""
    moment: Moment
    """The moment of the peak. `loss`: the forward pass has reached the head and all activations are saved. `backward`:
    inside the backward pass of a block. `step`: the optimizer updates the weights. `loading`: the weights are read."""
    host_bytes: int = 0
    """Main memory that all processes together take for what is kept off their devices; 0 if nothing is."""

    @property
    def host_upper_bytes(self) -> int:
        """Upper bound of host_bytes: half as much again, the factor that DeepSpeed's own estimate adds for buffers."""
        return self.host_bytes + self.host_bytes // 2

    @cached_property
    def total_bytes(self) -> int:
        return sum(component.size_bytes for component in self.components)

    def __getitem__(self, name: str) -> int:
        """Returns the bytes of a component; 0 if there is none of that name."""
        return sum(component.size_bytes for component in self.components if component.name == name)


class Estimator:
    """Computes the memory of one setup on one architecture, in bytes."""

    def __init__(self, architecture: Architecture, setup: Setup) -> None:
        self._a, self._s = architecture, setup
        lora = setup.lora
        self._adapters = Adapters(lora.r, lora.lora_dropout, lora.use_dora) if setup.trains_adapters else None
        self._targets = architecture.targets(lora) if setup.trains_adapters else [()] * architecture.layers

    @cached_property
    def num_adapter_parameters(self) -> int:
        """Number of adapter parameters: a rank-r adapter on a layer of m rows and n columns has r·(m + n)."""
        return sum(rows * columns for rows, columns in self._adapter_tensors())

    @cached_property
    def num_trained_parameters(self) -> int:
        return sum(rows * columns for rows, columns in self._trained_tensors())

    @cached_property
    def saved_bytes(self) -> int:
        """Bytes of the trained weights in a checkpoint, which for PiSSA and OLoRA contains the initial values too."""
        initial = self._s.trains_adapters and self._s.lora.changes_base
        return 4 * (self.num_trained_parameters + (self.num_adapter_parameters if initial else 0))

    @cached_property
    def weights(self) -> int:
        """Bytes of the base model's weights during training."""
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
        """Bytes of the adapters' weights, float32; those of PiSSA and OLoRA with their initial values."""
        return self.saved_bytes if self._s.trains_adapters else 0

    @cached_property
    def gradients(self) -> int:
        """Bytes of the gradients; float32, as everything that is trained."""
        return 4 * self.num_trained_parameters

    @cached_property
    def optimizer(self) -> int:
        """Bytes of the optimizer's states."""
        tensors, name = self._trained_tensors(), self._s.optimizer
        if self._s.trains_adapters or not name.endswith("8bit"):
            return sum(optimizer_bytes(name, rows, columns) for rows, columns in tensors)
        # The Trainer keeps the embedding's states, which come first, in float32.
        embedding, *rest = tensors
        return optimizer_bytes("adamw_torch", *embedding) + sum(optimizer_bytes(name, *shape) for shape in rest)

    @cached_property
    def blocks_saved(self) -> list[int]:
        """Bytes that each block saves for the backward pass without gradient checkpointing."""
        lora, saved = self._s.lora, cache(self._activations.block)
        reached = not self._s.trains_adapters or self._s.checkpointing
        # What is trained in full may be in front of the blocks.
        reached |= bool(lora.modules_to_save or lora.trainable_tokens)
        sizes = []
        for targets in self._targets:
            sizes.append(saved(targets, reached=reached))
            reached |= bool(targets)
        return sizes

    @cached_property
    def saved(self) -> int:
        """Bytes that autograd saves from the blocks and the last norm for the backward pass; with gradient
        checkpointing only the input of each block."""
        batch = self._s.batch
        ids = 0 if self._s.trains_adapters else 8 * batch.tokens
        ends = ids + self._activations.last_norm()
        if self._s.checkpointing:
            return ends + self._a.layers * batch.tokens * self._a.hidden * self._s.arithmetic.stream
        return ends + self._angles + sum(self.blocks_saved)

    @cached_property
    def carried(self) -> int:
        """Bytes that recomputation needs outside autograd: the attention mask and the rotary embedding's angles."""
        batch = self._s.batch
        mask = batch.rows * batch.length**2 if batch.padded else 0
        return mask + self._angles if self._s.checkpointing else 0

    @property
    def _angles(self) -> int:
        if self._a.family != "decoder":
            return 0
        return 2 * self._s.length * self._a.head_dim * self._s.arithmetic.stream

    @cached_property
    def head_saved(self) -> int:
        """Bytes that the head saves: the hidden states of its positions, and a few values for each."""
        return self._s.positions * (self._a.hidden * self._s.arithmetic.stream + 8 + 4)

    @cached_property
    def head_workspace(self) -> int:
        """Bytes of the head's tile of logits, and on a CPU of the copies that its backward pass makes."""
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
        """Bytes of temporary tensors in the backward pass of a block."""
        batch, a = self._s.batch, self._a
        wide = max(a.feed_forward * max(a.experts_per_token, 1), a.heads * a.head_dim, a.hidden)
        value = 4 if self._s.trains_adapters else self._s.arithmetic.autocast or 4
        widest = batch.tokens * wide * value
        if a.softcap:
            widest = max(widest, a.heads * batch.rows * batch.length**2 * 4)
        # A quantised weight is dequantised for each product.
        largest = max(layer.num_weights for layer in a.linears)
        expanded = largest * (self._s.arithmetic.autocast or 4) if self._s.method == "qlora" else 0
        if self._s.lora.use_dora and self._s.trains_adapters:
            # The norms need the product of the adapter's matrices, made from an identity matrix, and its sum with the
            # base weight.
            expanded += max(4 * (layer.columns**2 + 3 * layer.num_weights) for layer in a.linears)
        return _BLOCK_COPIES * widest + expanded

    @cached_property
    def step_workspace(self) -> int:
        """Bytes of temporary tensors in the optimizer's step: the root of the second moment and the quotient, for one
        tensor at a time, or on a GPU for all at once."""
        sizes = [4 * rows * columns for rows, columns in self._trained_tensors()]
        if self._s.optimizer in ("adamw_torch_fused", "sgd") or self._s.optimizer.endswith("bit"):
            return 0
        return sum(sizes) if self._s.on_gpu and self._s.optimizer == "adamw_torch" else 2 * max(sizes, default=0)

    @cached_property
    def process(self) -> int:
        """Bytes without a model: on a GPU its context, on a CPU the process."""
        if self._s.on_gpu:
            return _CONTEXT
        return _PROCESS

    def memory(self) -> Memory:
        """Returns the memory at the moment of its peak."""
        moments = [(name, self._components(name, *sizes)) for name, *sizes in self._moments()]
        moment, components = max(moments, key=lambda m: sum(part.size_bytes for part in m[1]))
        upper = max(sum(part.upper_bytes for part in parts) for _, parts in moments)
        host = share(self.whole, self._s.parallelism, self._s.world_size).host
        if self._s.parallelism == "fsdp" and self._s.on_gpu:
            # One process after the other loads the whole model; the first one holds what is trained when it saves.
            host = self.weights + self.adapters
        # The processes themselves are in main memory too.
        host += self._s.world_size * _PROCESS if host else 0
        return Memory(tuple(part for part in components if part.size_bytes), upper, moment, host)

    @cached_property
    def whole(self) -> Whole:
        """What one device alone would hold, with all gradients."""
        a, arithmetic = self._a, self._s.arithmetic
        block = sum(rows * columns for rows, columns in a.block_tensors)
        return Whole(
            weights=self.weights,
            adapters=self.adapters,
            gradients=self.gradients,
            optimizer=self.optimizer,
            trained=self.num_trained_parameters,
            trains_base=not self._s.trains_adapters,
            value=arithmetic.autocast or arithmetic.weights,
            block=block,
            ends=a.num_parameters - a.layers * block,
            blocks=a.layers,
        )

    def _components(
        self, moment: Moment, gradients: int, activations: int, logits: int, workspace: int
    ) -> list[Component]:
        s, slack = self._s, 0.10 if self._s.on_gpu else 0.08
        stepping = moment == "step"
        optimizer = 0 if moment == "loading" else self.optimizer
        whole = replace(self.whole, gradients=gradients, optimizer=optimizer)
        own = share(whole, s.parallelism, s.world_size, stepping=stepping)
        if moment == "loading":
            # In main memory, one process after the other holds the whole model; this is the part of each.
            own = replace(own, gathered=math.ceil(self.weights / s.world_size), buffers=0)
        if stepping and s.parallelism != "ddp":
            # The optimizer has only the process's part of each tensor, or nothing on the device.
            workspace = 0 if own.host else math.ceil(workspace / s.world_size)
        quantised = f", {s.quantization.bits}-bit with scales, the rest float32" if s.method == "qlora" else ""
        master = " and float32 weights" if s.parallelism.startswith("zero") else ""
        parts = [
            Component("weights", own.weights, f"base model{quantised}", 0.01),
            Component("adapters", own.adapters, f"LoRA adapters of rank {s.lora.r}, float32", 0.01),
            Component("gradients", own.gradients, "gradients of the trained weights, float32", 0.01),
            Component("optimizer", own.optimizer, f"states of {s.optimizer}{master}", 0.01),
            Component("gathered", own.gathered, "parameters of other processes while they are used", slack),
            Component(
                "buffers",
                own.buffers + connection_bytes(s.world_size, on_gpu=s.on_gpu),
                "buffers of the communication between processes",
                0.5,
            ),
            Component("activations", activations, "saved for the backward pass", slack),
            Component("logits", logits, "a tile of logits and its copies", slack),
            Component("workspace", workspace, "temporary tensors of the backward pass or the optimizer step", 0.25),
            Component("process", self.process, "GPU context", 0.08)
            if s.on_gpu
            else Component("process", self.process, "Python interpreter and libraries", 0.12),
        ]
        if s.on_gpu:
            used = sum(part.size_bytes for part in parts[:-1])
            what = "memory that the allocator reserves beyond what is used"
            # Blocks are rounded up and leave holes: at most a tenth in common trainings. The estimate is half of that,
            # the upper bound all of it.
            parts.append(Component("fragmentation", used // 20, what, 1.0))
        elif activations:
            inl = self._a.family == "inl"
            of_all = _HEAP_OF_ALL_INL_ADAPTERS if inl and s.trains_adapters else _HEAP_OF_ALL
            lost = of_all * sum(self.blocks_saved) + _HEAP_OF_BLOCK * max(self.blocks_saved)
            if inl:
                lost = min(lost, _LARGEST_IN_HEAP * len(self._trained_tensors()))
            what = "memory of freed tensors that the heap keeps"
            parts.append(Component("fragmentation", int(lost), what, 0.6))
        return parts

    def _moments(self) -> Iterable[tuple[Moment, int, int, int, int]]:
        """Yields (moment, gradients, activations, logits, workspace) for each moment that can be the peak."""
        s, everything = self._s, self.gradients
        # Gradients of adapters are small and always counted. Those of all weights appear as activations are freed.
        before = everything if s.trains_adapters or s.accumulation > 1 else 0
        head = 0 if s.trains_adapters else 4 * self._a.num_embedding_weights
        saved = self.saved + self.carried + self.head_saved
        block = max(self.blocks_saved) if s.checkpointing else 0
        yield "loss", max(before, head), saved, self.head_workspace, 0
        yield "backward", max(before, head), saved + block, 0, self.block_workspace
        yield "backward", everything, max(self.blocks_saved), 0, self.block_workspace
        yield "step", everything, 0, 0, self.step_workspace
        if s.parallelism == "fsdp" and not s.on_gpu:
            yield "loading", 0, 0, 0, 0

    @cached_property
    def _activations(self) -> SavedActivations:
        return SavedActivations(self._a, self._s.batch, self._s.arithmetic, self._adapters, self._s.on_gpu)

    def _adapter_tensors(self) -> list[tuple[int, int]]:
        if self._adapters is None:
            return []
        lora, shapes = self._s.lora, list[tuple[int, int]]()
        for targets in self._targets:
            for layer in targets:
                shapes += [(lora.r, layer.columns), (layer.rows, lora.r)]
                shapes += [(1, layer.rows)] if lora.use_dora else []
            biased = {"all": self._a.linears, "lora_only": targets, "none": ()}[lora.bias]
            shapes += [(1, layer.rows) for layer in biased if layer.bias]
        for shape in self._a.saved_tensors(lora.modules_to_save).values():
            shapes.append((math.prod(shape[:-1]), shape[-1]))
        if lora.trainable_tokens:
            shapes.append((len(lora.trainable_tokens), self._a.hidden))
        return shapes

    def _trained_tensors(self) -> list[tuple[int, int]]:
        return self._adapter_tensors() if self._s.trains_adapters else list(self._a.tensors)


def estimate_memory(architecture: Architecture, setup: Setup) -> Memory:
    """Estimates the peak memory of `setup` on `architecture`."""
    return Estimator(architecture, setup).memory()


def quantised_bytes(rows: int, columns: int, quantization: Quantization) -> int:
    """Returns the bytes of one linear layer's quantised weight.

    8 bits: one byte a weight, and a float32 scale a row (LLM.int8). 4 bits: half a byte a weight, and one scale for 64
    weights. A scale is a float32, or with double quantisation one byte and a float32 for 256 scales (QLoRA, arXiv
    2305.14314, sec. 3). Each layer also has code books of 16 and 256 float32 and the mean of the scales.
    """
    weights = rows * columns
    if quantization.bits == 8:
        return weights + 4 * rows
    scales = math.ceil(weights / 64)
    if not quantization.bnb_4bit_use_double_quant:
        return math.ceil(weights / 2) + 4 * scales + 4 * 16
    return math.ceil(weights / 2) + scales + 4 * math.ceil(scales / 256) + 4 * (16 + 256 + 1)


def optimizer_bytes(name: str, rows: int, columns: int) -> int:
    """Returns the bytes of the optimizer's state for one tensor.

    AdamW has two moments: float32, or in its 8-bit form one byte each and a float32 scale for 256 values (arXiv
    2110.02861), though tensors below 4,096 values stay float32. Adafactor has the mean square of every row and column
    (arXiv 1804.04235). Plain SGD has no state.
    """
    values = rows * columns
    match name:
        case "sgd":
            return 0
        case "adafactor":
            return 4 * (values if rows == 1 else rows + columns)
        case "adamw_8bit" | "paged_adamw_8bit" if values >= 4096:
            return 2 * (values + 4 * math.ceil(values / 256))
    return 8 * values
