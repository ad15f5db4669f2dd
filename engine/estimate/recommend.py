"""How a model is best trained on a machine: the method, and the smallest change that makes it fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from engine.config.job import Hyperparameters, JobConfig
from engine.estimate.architecture import Architecture
from engine.estimate.machine import Machine
from engine.estimate.memory import GIB, Memory, Setup, estimate_memory
from engine.estimate.saved_activations import METHODS, Method

Verdict = Literal["comfortable", "tight", "impossible"]

RESERVE: Final = 0.05
"""Share of the free memory that is left alone: what is free now need not be free in an hour."""

TIGHT: Final[dict[str, Any]] = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "max_length": 1024,
    "gradient_checkpointing": True,
}
"""What a job is reduced to at most where memory is short (seed 000, 2.3)."""


@dataclass(frozen=True)
class Adjustment:
    """One hyperparameter that has to change."""

    field: str
    """`hyperparameters.max_length`."""
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.field.rpartition('.')[2]} = {_shown(self.after)}"


@dataclass(frozen=True)
class Plan:
    """A method, whether it fits, and with which changes."""

    method: Method
    verdict: Verdict
    setup: Setup
    memory: Memory
    unreduced: tuple[Setup, Memory]
    """As the configuration has it."""
    adjustments: tuple[Adjustment, ...] = ()


@dataclass(frozen=True)
class Recommendation:
    """The plan to follow, and what speaks for it."""

    plan: Plan
    """Of an impossible one: the smallest there is."""
    reason: str
    warnings: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()

    @property
    def method(self) -> Method | None:
        """None: the model cannot be trained there."""
        return None if self.plan.verdict == "impossible" else self.plan.method


def usable_bytes(machine: Machine) -> int:
    """What a training may take of what is free."""
    return int(machine.free_bytes * (1 - RESERVE))


def fits(memory: Memory, machine: Machine) -> bool:
    """Judged by the upper bound: what it says fits, fits."""
    return memory.upper_bytes <= usable_bytes(machine)


def plan(
    architecture: Architecture, machine: Machine, config: JobConfig, method: Method, length: int | None = None
) -> Plan:
    """Whether `method` fits as `config` says, or with the first of the reductions that is enough.

    `length` is that of the longest row; max_length where it is not known.
    """
    hyper = config.hyperparameters
    longest = hyper.max_length if length is None else length
    tried: list[tuple[Setup, Memory]] = []
    whole = len(_whole(hyper))
    for smaller in _reductions(hyper, longest):
        changed = config.model_copy(update={"hyperparameters": _settled(smaller, machine)})
        setup = Setup.of(changed, on_gpu=machine.on_gpu, length=longest, method=method)
        tried.append((setup, estimate_memory(architecture, setup)))
        if fits(tried[-1][1], machine):
            break
    setup, memory = tried[-1]
    verdict: Verdict = "impossible"
    if fits(memory, machine):
        verdict = "comfortable" if len(tried) <= whole else "tight"
    return Plan(method, verdict, setup, memory, tried[min(len(tried), whole) - 1], _changes(hyper, smaller))


def recommend(
    architecture: Architecture, machine: Machine, config: JobConfig, length: int | None = None
) -> Recommendation:
    """The method to train with. The job's own is kept where it names one; else LoRA if it fits as it is, then QLoRA,
    then the same with reductions; on a processor, where quantised weights only cost time, QLoRA if LoRA does not fit
    with any reduction. All weights are trained only when asked for: it needs several times the memory, and
    a small data set rarely repays it."""
    asked: Sequence[Method] = _candidates(machine) if config.method == "auto" else [config.method]
    plans = [plan(architecture, machine, config, method, length) for method in asked]
    ranks = ("comfortable", "tight", "impossible")
    best = min(plans, key=lambda p: ranks.index(p.verdict) if machine.on_gpu else p.verdict == "impossible")
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
    """Bytes that must be free for `method`: with every reduction, and as `config` is."""
    hyper = config.hyperparameters
    sizes = []
    for smaller in _reductions(hyper, hyper.max_length):
        changed = config.model_copy(update={"hyperparameters": _settled(smaller, machine)})
        setup = Setup.of(changed, on_gpu=machine.on_gpu, length=hyper.max_length, method=method)
        sizes.append(estimate_memory(architecture, setup).upper_bytes)
    return int(min(sizes) / (1 - RESERVE)), int(min(sizes[: len(_whole(hyper))]) / (1 - RESERVE))


def _candidates(machine: Machine) -> list[Method]:
    return ["lora", "qlora"] if machine.quantises else ["lora"]


def _whole(hyper: Hyperparameters) -> list[Hyperparameters]:
    """What is no reduction: the hyperparameters themselves, where recomputation is automatic without it and with it."""
    if hyper.gradient_checkpointing is not None:
        return [hyper]
    return [hyper.model_copy(update={"gradient_checkpointing": value}) for value in (False, True)]


def _settled(hyper: Hyperparameters, machine: Machine) -> Hyperparameters:
    """With the precision that preflight would choose."""
    if hyper.precision != "auto":
        return hyper
    half = "bf16" if machine.bf16 else "fp16" if machine.on_gpu else "fp32"
    return hyper.model_copy(update={"precision": half})


def _reductions(hyper: Hyperparameters, longest: int) -> Iterator[Hyperparameters]:
    """What is no reduction, then ever smaller ones, down to `TIGHT`. What costs least comes first: recomputation
    costs time only, fewer rows at once as well, cut rows cost what was cut."""
    yield from _whole(hyper)
    current = _whole(hyper)[-1]
    if hyper.gradient_checkpointing is False:
        current = current.model_copy(update={"gradient_checkpointing": True})
        yield current
    rows = hyper.per_device_train_batch_size
    while (rows := rows // 2) > 1:
        held = {"per_device_train_batch_size": rows, "per_device_eval_batch_size": rows}
        steps = hyper.gradient_accumulation_steps * hyper.per_device_train_batch_size // rows
        current = current.model_copy(update={**held, "gradient_accumulation_steps": steps})
        yield current
    if hyper.per_device_train_batch_size > 1:
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
    need = f"{_gib(best.memory.upper_bytes)} at most of the {_gib(machine.free_bytes)} that are free"
    others = [p for p in plans if p is not best and p.verdict != best.verdict]
    instead = "".join(f" {_title(p.method)} {_said(p)}." for p in others)
    match best.verdict:
        case "comfortable":
            return f"{_title(best.method)} takes {need}.{instead}"
        case "tight":
            changes = ", ".join(map(str, best.adjustments))
            return f"{_title(best.method)} takes {need}, with {changes}.{instead}"
        case _:
            weights = _gib(best.memory["weights"])
            return (
                f"Even {_title(best.method)} with every reduction takes up to {_gib(best.memory.upper_bytes)}, "
                f"{weights} of it for the weights; {_gib(machine.free_bytes)} are free."
            )


def _said(p: Plan) -> str:
    if p.verdict == "tight":
        return f"would fit only with {', '.join(map(str, p.adjustments))}"
    return f"would take up to {_gib(p.memory.upper_bytes)}" + (" even so" if p.adjustments else "")


def _warnings(best: Plan, architecture: Architecture, machine: Machine, config: JobConfig) -> Iterator[str]:
    changes = {a.field.rpartition(".")[2]: a for a in best.adjustments}
    if "max_length" in changes:
        yield f"Rows longer than {changes['max_length'].after:,} tokens are cut."
    hyper = config.hyperparameters
    if "per_device_train_batch_size" in changes and "gradient_accumulation_steps" in changes:
        rows = best.setup.rows * best.setup.accumulation
        was = hyper.per_device_train_batch_size * hyper.gradient_accumulation_steps
        if rows != was:
            yield f"A step then takes {rows} rows in place of {was}; lower the learning rate if the loss is uneasy."
    if not machine.on_gpu and best.verdict != "impossible":
        yield "There is no usable GPU here: this is a training on the processor, and takes accordingly long."
    if best.method == "qlora" and not machine.on_gpu:
        yield "On a processor every pass expands the quantised weights again, which takes time."
    if best.method == "qlora" and not machine.quantises:
        yield "The package bitsandbytes is not installed on this node."
    if machine.on_gpu and not machine.bf16:
        yield f"{machine.name} has no bfloat16: it computes in fp16."
    if architecture.vision:
        yield "Only the text part of this model is counted."
    if architecture.experts:
        yield "Adapters go to attention alone: the experts of this model are no linear layers that they attach to."


def _alternatives(best: Plan, others: Sequence[Plan]) -> Iterator[str]:
    for other in others:
        saves_nothing = other.method == "qlora" and other.memory.upper_bytes >= best.memory.upper_bytes
        if other.verdict == "impossible" or saves_nothing:
            continue
        changes = f", with {', '.join(map(str, other.adjustments))}" if other.adjustments else ""
        yield f"{_title(other.method)}: up to {_gib(other.memory.upper_bytes)}{changes}. {_FOR[other.method]}"
    if best.verdict == "impossible":
        yield "A smaller base model, or a GPU with more memory."


_FOR: Final[dict[Method, str]] = {
    "lora": "Faster, and without rounded weights.",
    "qlora": "Saves memory for longer rows or larger batches, at some cost of time.",
    "full": "Trains every weight: for much data, or to teach what is far from what the model knows.",
}


def _title(method: Method) -> str:
    return {"lora": "LoRA", "qlora": "QLoRA", "full": "Full fine-tuning"}[method]


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
