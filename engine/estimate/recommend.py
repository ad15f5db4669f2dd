"""Recommends a training method for a model on a machine, with the smallest change that makes it fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from engine.config.job import Hyperparameters, JobConfig
from engine.estimate.architecture import Architecture
from engine.estimate.machine import Machine
from engine.estimate.memory import GIB, Memory, Setup, estimate_memory
from engine.estimate.parallelism import Parallelism, eligible
from engine.estimate.saved_activations import METHODS, Method

Verdict = Literal["comfortable", "tight", "impossible"]

_VERDICTS: Final[tuple[Verdict, ...]] = ("comfortable", "tight", "impossible")

RESERVE: Final = 0.05
"""Share of the free memory that is kept in reserve: less may be free in an hour than now."""

TIGHT: Final[dict[str, Any]] = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "max_length": 1024,
    "gradient_checkpointing": True,
}
"""Values of the strongest reduction of a job when memory is short."""


@dataclass(frozen=True)
class Adjustment:
    """A change of one hyperparameter."""

    field: str
    """Path in the spec, such as `hyperparameters.max_length`."""
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.field.rpartition('.')[2]} = {_shown(self.after)}"


@dataclass(frozen=True)
class Plan:
    """A method with its verdict and the changes it needs."""

    method: Method
    verdict: Verdict
    setup: Setup
    memory: Memory
    unreduced: tuple[Setup, Memory]
    """Setup and memory without the changes."""
    adjustments: tuple[Adjustment, ...] = ()
    parallelism_reason: str = ""
    """Reason for the way in which several processes share the training; empty for one process."""


@dataclass(frozen=True)
class Recommendation:
    """The recommended plan and its reason."""

    plan: Plan
    """If no plan fits: the one that takes the least memory."""
    reason: str
    warnings: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()

    @property
    def method(self) -> Method | None:
        """The method, or None if the model cannot be trained on this machine."""
        return None if self.plan.verdict == "impossible" else self.plan.method


def usable_bytes(machine: Machine) -> int:
    """Bytes of the free memory that each process of a training may take."""
    return int(machine.free_bytes * (1 - RESERVE))


def fits(memory: Memory, machine: Machine) -> bool:
    """Compares the upper bound of the memory with the usable memory, on each device and of the node."""
    return memory.upper_bytes <= usable_bytes(machine) and fits_host(memory, machine.host_free_bytes)


def fits_host(memory: Memory, free_bytes: int) -> bool:
    """Compares what all processes keep in main memory with what is free of it; 0: unknown, and not compared."""
    return not free_bytes or memory.host_upper_bytes <= free_bytes * (1 - RESERVE)


def plan(
    architecture: Architecture, machine: Machine, config: JobConfig, method: Method, length: int | None = None
) -> Plan:
    """Plans `method` with the hyperparameters of `config`, or with the first reduction that makes it fit.

    `length` is the number of tokens of the longest row; None means max_length. Batch sizes that are automatic and not
    resolved yet have the usual values. If the parallelism is automatic, it is the first with which the training fits
    without reductions, otherwise the first with which it fits, otherwise the one that takes the least memory.
    """
    ways = eligible(config, method, on_gpu=machine.on_gpu, deepspeed=machine.deepspeed)
    plans = [_plan(architecture, machine, config, method, length, way) for way in ways]
    best = min(plans, key=lambda p: _VERDICTS.index(p.verdict))
    if best.verdict == "impossible":
        best = min(plans, key=lambda p: p.memory.upper_bytes)
    if config.world_size == 1:
        return best
    return replace(best, parallelism_reason=_parallelism_reason(best, plans, machine, config))


def _plan(
    architecture: Architecture,
    machine: Machine,
    config: JobConfig,
    method: Method,
    length: int | None,
    parallelism: Parallelism,
) -> Plan:
    hyper = config.hyperparameters.with_usual_batches()
    longest = hyper.max_length if length is None else length
    tried: list[tuple[Setup, Memory]] = []
    unreduced = len(_unreduced(hyper))
    for smaller in _reductions(hyper, longest):
        changed = config.model_copy(update={"hyperparameters": _with_precision(smaller, machine)})
        setup = Setup.of(changed, on_gpu=machine.on_gpu, length=longest, method=method, parallelism=parallelism)
        tried.append((setup, estimate_memory(architecture, setup)))
        if fits(tried[-1][1], machine):
            break
    setup, memory = tried[-1]
    verdict: Verdict = "impossible"
    if fits(memory, machine):
        verdict = "comfortable" if len(tried) <= unreduced else "tight"
    return Plan(method, verdict, setup, memory, tried[min(len(tried), unreduced) - 1], _changes(hyper, smaller))


def _parallelism_reason(best: Plan, plans: Sequence[Plan], machine: Machine, config: JobConfig) -> str:
    if config.resources.parallelism != "auto":
        return "named by the job"
    own = best.setup.parallelism
    need = f"{own} takes up to {_gib(best.memory.upper_bytes)} of {_gib(machine.free_bytes)} free for each process"
    if best.memory.host_bytes:
        need += f", and up to {_gib(best.memory.host_upper_bytes)} of main memory"
    if best.verdict != "comfortable":
        need += ", with the changes that make it fit" if best.verdict == "tight" else ", with every change"
    before = plans[: plans.index(best)]
    return "; ".join([need, *(f"{p.setup.parallelism} {_unfit(p)}" for p in before)])


def recommend(
    architecture: Architecture, machine: Machine, config: JobConfig, length: int | None = None
) -> Recommendation:
    """Recommends the method to train with.

    A method that the job names is kept. Otherwise LoRA is recommended if it fits unchanged, then QLoRA, then both with
    reductions. On a CPU, where quantised weights only cost time, QLoRA is recommended only if LoRA does not fit with
    any reduction. Full fine-tuning is never recommended unasked: it needs several times the memory, and a small data
    set rarely repays it.
    """
    asked: Sequence[Method] = _candidates(machine) if config.method == "auto" else [config.method]
    plans = [plan(architecture, machine, config, method, length) for method in asked]
    best = min(plans, key=lambda p: _VERDICTS.index(p.verdict) if machine.on_gpu else p.verdict == "impossible")
    if best.verdict == "impossible":
        best = min(plans, key=lambda p: p.memory.upper_bytes)
    others: list[Method] = [m for m in METHODS if m != best.method and (m != "qlora" or machine.quantises)]
    rest = [plan(architecture, machine, config, method, length) for method in others]
    return Recommendation(
        best,
        _reason(best, plans, machine),
        tuple(_warnings(best, architecture, machine, config)),
        tuple(_alternatives(best, rest)),
    )


def smallest_free(architecture: Architecture, machine: Machine, config: JobConfig, method: Method) -> tuple[int, int]:
    """Returns the bytes that must be free for `method`: with every reduction, and without any."""
    hyper = config.hyperparameters.with_usual_batches()
    sizes = []
    for smaller in _reductions(hyper, hyper.max_length):
        changed = config.model_copy(update={"hyperparameters": _with_precision(smaller, machine)})
        setup = Setup.of(changed, on_gpu=machine.on_gpu, length=hyper.max_length, method=method)
        sizes.append(estimate_memory(architecture, setup).upper_bytes)
    return int(min(sizes) / (1 - RESERVE)), int(min(sizes[: len(_unreduced(hyper))]) / (1 - RESERVE))


def _candidates(machine: Machine) -> list[Method]:
    return ["lora", "qlora"] if machine.quantises else ["lora"]


def _unreduced(hyper: Hyperparameters) -> list[Hyperparameters]:
    """Returns the unreduced variants; if gradient checkpointing is automatic, one without it and one with it."""
    if hyper.gradient_checkpointing is not None:
        return [hyper]
    return [hyper.model_copy(update={"gradient_checkpointing": value}) for value in (False, True)]


def _with_precision(hyper: Hyperparameters, machine: Machine) -> Hyperparameters:
    """Replaces an automatic precision by the one that preflight chooses."""
    if hyper.precision != "auto":
        return hyper
    half = "bf16" if machine.bf16 else "fp16" if machine.on_gpu else "fp32"
    return hyper.model_copy(update={"precision": half})


def _reductions(hyper: Hyperparameters, longest: int) -> Iterator[Hyperparameters]:
    """Yields the unreduced variants, then stronger and stronger reductions, down to `TIGHT`.

    The cheapest comes first: gradient checkpointing and smaller micro-batches cost only time; truncation costs data.
    """
    yield from _unreduced(hyper)
    current = _unreduced(hyper)[-1]
    if hyper.gradient_checkpointing is False:
        current = current.model_copy(update={"gradient_checkpointing": True})
        yield current
    rows = hyper.micro_batch
    while (rows := rows // 2) > 1:
        held = {"per_device_train_batch_size": rows, "per_device_eval_batch_size": rows}
        steps = hyper.micro_batch * hyper.accumulation // rows
        current = current.model_copy(update={**held, "gradient_accumulation_steps": steps})
        yield current
    if hyper.micro_batch > 1:
        names = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
        current = current.model_copy(update={name: TIGHT[name] for name in names})
        yield current
    if min(hyper.max_length, longest) > TIGHT["max_length"]:
        yield current.model_copy(update={"max_length": TIGHT["max_length"]})


def _changes(before: Hyperparameters, after: Hyperparameters) -> tuple[Adjustment, ...]:
    return tuple(
        Adjustment(f"hyperparameters.{name}", getattr(before, name), getattr(after, name))
        for name in TIGHT
        if getattr(before, name) not in (None, getattr(after, name))
    )


def _reason(best: Plan, plans: Sequence[Plan], machine: Machine) -> str:
    each = f" in each of {machine.world_size} processes" if machine.world_size > 1 else ""
    need = f"up to {_gib(best.memory.upper_bytes)} of {_gib(machine.free_bytes)} free{each}"
    others = [p for p in plans if p is not best and p.verdict != best.verdict]
    instead = "".join(f" {_title(p.method)} {_unfit(p)}." for p in others)
    match best.verdict:
        case "comfortable":
            return f"{_title(best.method)} takes {need}.{instead}"
        case "tight":
            changes = ", ".join(map(str, best.adjustments))
            return f"{_title(best.method)} takes {need}, with {changes}.{instead}"
        case _:
            weights = _gib(best.memory["weights"])
            return (
                f"{_title(best.method)} takes up to {_gib(best.memory.upper_bytes)} even with every reduction, "
                f"{weights} of it for the weights; {_gib(machine.free_bytes)} are free."
            )


def _unfit(p: Plan) -> str:
    if p.verdict == "tight":
        return f"would fit only with {', '.join(map(str, p.adjustments))}"
    return f"would take up to {_gib(p.memory.upper_bytes)}" + (" even with every reduction" if p.adjustments else "")


def _warnings(best: Plan, architecture: Architecture, machine: Machine, config: JobConfig) -> Iterator[str]:
    changes = {a.field.rpartition(".")[2]: a for a in best.adjustments}
    if "max_length" in changes:
        yield f"Rows longer than {changes['max_length'].after:,} tokens are truncated."
    hyper = config.hyperparameters
    if "per_device_train_batch_size" in changes and "gradient_accumulation_steps" in changes:
        rows = best.setup.rows * best.setup.accumulation
        if rows != (before := hyper.micro_batch * hyper.accumulation):
            was = f"{rows} rows instead of {before}"
            yield f"A step then has {was}; lower the learning rate if the loss is unstable."
    if not machine.on_gpu and best.verdict != "impossible":
        yield "No GPU is usable: the job trains on the CPU, which takes much longer."
    if best.method == "qlora" and not machine.on_gpu:
        yield "On a CPU every pass dequantizes the weights again, which takes time."
    if best.method == "qlora" and not machine.quantises:
        yield "The package bitsandbytes, which QLoRA needs, is not installed on this node."
    if machine.on_gpu and not machine.bf16:
        yield f"{machine.name} does not support bf16: it computes in fp16."
    if architecture.vision:
        yield "Only the text part of this model is estimated."
    if architecture.experts:
        yield "Adapters are added to the attention layers only: the experts of this model are not linear layers."


def _alternatives(best: Plan, others: Sequence[Plan]) -> Iterator[str]:
    for other in others:
        saves_nothing = other.method == "qlora" and other.memory.upper_bytes >= best.memory.upper_bytes
        if other.verdict == "impossible" or saves_nothing:
            continue
        changes = f", with {', '.join(map(str, other.adjustments))}" if other.adjustments else ""
        yield f"{_title(other.method)}: up to {_gib(other.memory.upper_bytes)}{changes}. {_FOR[other.method]}"
    if best.verdict == "impossible":
        yield "Use a smaller base model or a GPU with more memory."


_FOR: Final[dict[Method, str]] = {
    "lora": "Faster, and its weights are not quantized.",
    "qlora": "Saves memory for longer rows or larger batches, but takes more time.",
    "full": "Trains every weight: for large data sets, or tasks far from what the model knows.",
}


def _title(method: Method) -> str:
    return {"lora": "LoRA", "qlora": "QLoRA", "full": "Full fine-tuning"}[method]


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
