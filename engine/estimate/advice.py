"""What would make a job better, and why: from its own rows, its model and its machine, never by heart."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from engine.config.curriculum import total_steps
from engine.config.job import JobConfig
from engine.config.schedule import num_warmup_steps
from engine.data.statistics import Statistics
from engine.estimate.architecture import Architecture
from engine.estimate.duration import evaluation_flops_per_token, flops_per_token
from engine.estimate.machine import Machine
from engine.estimate.memory import GIB, Estimator, Memory, Setup, estimate_memory
from engine.estimate.recommend import fits, plan

_RATES: Final[Mapping[str, tuple[float, float, float]]] = {
    "lora": (5e-5, 1e-3, 2e-4),
    "qlora": (5e-5, 1e-3, 2e-4),
    "full": (1e-6, 1e-4, 2e-5),
}
"""Learning rates by method: the usual range, and the middle of it. Adapters start at zero and move far; weights that
know something already do not bear that."""
_SCALES: Final = {False: (0.5, 4.0, 2.0), True: (0.5, 8.0, 4.0)}
"""What an adapter's product is multiplied with, plain (alpha / r) or rank-stabilised (alpha / √r): range, middle."""
_RANK: Final = 16
"""A common rank."""
_FEW_STEPS: Final = 30
_WARM_UP: Final = (0.3, 0.05)
"""The share of the steps from which on a warm-up is long, and a common one."""
_MANY_PASSES: Final = 5
_FEW_ROWS: Final = 500
_MEASURABLE: Final = 20
"""Held-out rows below which a single one moves the measure by more than 5 %."""
_PADDED: Final = 0.25
_FULL_PACKS: Final = 0.8
_EVALUATING: Final = (0.25, 0.1)
"""Shares of the training's operations that evaluations take: too many, and enough."""
_CUT: Final = 0.01
_LONG_UNSAVED: Final = 600.0
"""Seconds of work that a failure may cost."""


@dataclass(frozen=True)
class Improvement:
    """A change of one field."""

    field: str
    """`hyperparameters.packing`."""
    current: str
    suggested: str
    """Both as `--set` takes them."""
    reason: str


@dataclass(frozen=True)
class JobFacts:
    """A resolved job: what it is, what it works on and where it runs."""

    config: JobConfig
    architecture: Architecture
    machine: Machine
    train: Statistics
    evaluation: Statistics
    num_packed: int
    """Sequences that packing makes, or would make, of the training rows."""
    num_distinct: int
    """Rows of the data, held-out ones included, each once however many phases have it."""
    total_steps: int
    passes: float
    """Over the training rows."""
    seconds: float | None = None
    """Of training, where it was estimated."""

    @property
    def longest(self) -> int:
        return self.train.max_tokens or self.config.hyperparameters.max_length

    @property
    def repetition(self) -> float:
        """How often the phases have the same row, by the mean; 1 without phases."""
        counted = self.train.num_examples + self.train.num_dropped + self.evaluation.num_examples
        return max(1.0, counted / max(self.num_distinct, 1)) if self.config.phases else 1.0

    @property
    def rows_of_a_step(self) -> int:
        hyper = self.config.hyperparameters
        return hyper.per_device_train_batch_size * hyper.gradient_accumulation_steps

    @property
    def num_sequences(self) -> int:
        return self.num_packed if self.config.hyperparameters.packing else self.train.num_examples

    @cached_property
    def memory(self) -> Memory:
        return self.memory_with()

    def memory_with(self, *, length: int | None = None, **hyper: Any) -> Memory:
        """With other hyperparameters, or a longest row of `length` tokens."""
        return estimate_memory(self.architecture, self.setup_with(length=length, **hyper))

    def setup_with(self, *, length: int | None = None, **hyper: Any) -> Setup:
        changed = self.config.hyperparameters.model_copy(update=hyper)
        config = self.config.model_copy(update={"hyperparameters": changed})
        return Setup.of(config, on_gpu=self.machine.on_gpu, length=length or self.longest)

    def of_free(self, memory: Memory) -> str:
        return f"up to {_gib(memory.upper_bytes)} of the {_gib(self.machine.free_bytes)} that are free"


def improvements(job: JobFacts) -> list[Improvement]:
    """The most important first, at most one for each field. Empty for data of which nothing could be counted."""
    if not job.train.num_examples:
        return []
    found: dict[str, Improvement] = {}
    for rule in _RULES:
        for improvement in rule(job):
            if improvement.suggested != improvement.current:
                found.setdefault(improvement.field, improvement)
    return list(found.values())


def _learning_rate(job: JobFacts) -> Iterator[Improvement]:
    low, high, middle = _RATES[job.config.method]
    rate, title = job.config.hyperparameters.learning_rate, _TITLES[job.config.method]
    usual = f"{title} is usually trained with ({low:g} to {high:g})"
    if rate > high:
        why = f"{_times(rate / high)} the highest rate {usual}: the loss of such a run often jumps, or ends as NaN."
        yield _better("hyperparameters.learning_rate", rate, middle, why)
    elif rate < low:
        why = f"{_times(low / rate)} below the lowest rate {usual}: {job.total_steps:,} steps of it change little."
        yield _better("hyperparameters.learning_rate", rate, middle, why)


def _warm_up(job: JobFacts) -> Iterator[Improvement]:
    hyper, steps = job.config.hyperparameters, job.total_steps
    many, common = _WARM_UP
    warm = num_warmup_steps(hyper, steps)
    if warm <= max(1, many * steps):
        return
    left = _count(steps - warm, "step")
    why = f"The learning rate rises over {warm:,} of {steps:,} steps, which leaves {left} after it."
    if hyper.warmup_steps is not None:
        yield _better("hyperparameters.warmup_steps", hyper.warmup_steps, math.floor(common * steps), why)
    else:
        yield _better("hyperparameters.warmup_ratio", hyper.warmup_ratio, common, why)


def _few_steps(job: JobFacts) -> Iterator[Improvement]:
    hyper = job.config.hyperparameters
    if job.total_steps >= _FEW_STEPS or hyper.max_steps is not None or job.config.phases:
        return
    rows, passes = hyper.per_device_train_batch_size, hyper.gradient_accumulation_steps
    made = (
        f"{_count(job.num_sequences, 'row')} make {_count(job.total_steps, 'step')} of "
        f"{min(job.rows_of_a_step, job.num_sequences)}: the weights move that often."
    )

    def steps_with(**changed: int) -> int:
        return total_steps(job.num_sequences, hyper.model_copy(update=changed))

    fewer = max(1, passes * job.total_steps // _FEW_STEPS)
    steps = steps_with(gradient_accumulation_steps=fewer)
    if steps > job.total_steps:
        why = f"{made} With {fewer} the same rows make {steps}."
        yield _better("hyperparameters.gradient_accumulation_steps", passes, fewer, why)
        return
    # Where a single forward pass takes all rows, or nearly all, only smaller ones make more steps.
    smaller = min(rows, max(1, math.floor(job.num_sequences * hyper.num_epochs / _FEW_STEPS)))
    steps = steps_with(per_device_train_batch_size=smaller, gradient_accumulation_steps=1)
    if steps > job.total_steps:
        both = f"per_device_train_batch_size = {smaller} and gradient_accumulation_steps = 1"
        why = f"{made} With {both} the same rows make {steps}."
        yield _better("hyperparameters.per_device_train_batch_size", rows, smaller, why)
        yield _better("hyperparameters.gradient_accumulation_steps", passes, 1, why)
    elif hyper.num_epochs < _MANY_PASSES and job.total_steps * _MANY_PASSES / hyper.num_epochs >= _FEW_STEPS / 3:
        more = min(float(_MANY_PASSES), math.ceil(hyper.num_epochs * _FEW_STEPS / max(job.total_steps, 1)))
        if more > hyper.num_epochs:
            rows = min(job.rows_of_a_step, job.num_sequences)
            why = f"The weights move {_count(job.total_steps, 'time')} only, {_count(rows, 'row')} each."
            yield _better("hyperparameters.num_epochs", hyper.num_epochs, more, why)


def _passes(job: JobFacts) -> Iterator[Improvement]:
    hyper, rows = job.config.hyperparameters, job.train.num_examples
    stops = job.evaluation.num_examples > 0 and 0 < hyper.early_stopping_patience * hyper.eval_steps < job.total_steps
    many = 2 * _MANY_PASSES if stops else _MANY_PASSES
    if job.config.phases or job.passes <= many or (rows >= _FEW_ROWS and job.passes <= 2 * many):
        return
    shown = "" if job.evaluation.num_examples else ", and without held-out rows nothing would show it"
    why = f"Each of the {rows:,} rows is seen {job.passes:.0f} times: they are learnt by heart{shown}."
    if hyper.max_steps is not None:
        yield _better("hyperparameters.max_steps", hyper.max_steps, math.ceil(job.total_steps * 3 / job.passes), why)
    else:
        yield _better("hyperparameters.num_epochs", hyper.num_epochs, 3, why)


def _scale(job: JobFacts) -> Iterator[Improvement]:
    lora = job.config.lora
    if job.config.method == "full":
        return
    targeted = job.architecture.targets(lora.target_modules)
    widest = max((min(layer.rows, layer.columns) for layer in targeted), default=lora.r)
    if lora.r > widest:
        # Nor would another alpha help: a matrix has no higher rank than its narrower side.
        why = f"A rank of {lora.r:,} takes memory that nothing can use: no targeted layer is wider than {widest:,}."
        yield _better("lora.r", lora.r, min(_RANK, widest), why)
        return
    low, high, middle = _SCALES[lora.use_rslora]
    root = math.sqrt(lora.r) if lora.use_rslora else float(lora.r)
    scale = lora.lora_alpha / root
    if not low <= scale <= high:
        what = "√r" if lora.use_rslora else "r"
        effect = "what adapters learn hardly counts" if scale < low else "every step weighs as much more, too"
        why = f"lora_alpha / {what} = {scale:.3g} scales the adapters, where {low:g} to {high:g} is usual: {effect}."
        yield _better("lora.lora_alpha", lora.lora_alpha, round(middle * root), why)


def _holdout(job: JobFacts) -> Iterator[Improvement]:
    config, held = job.config, job.evaluation.num_examples
    rows = job.num_distinct
    if not config.evaluates_while_training and rows >= 50:
        why = (
            f"None of the {rows:,} rows is held out: nothing tells whether the training helped, it is never stopped "
            "early, and the last checkpoint is exported, not the best."
        )
        yield _better("holdout_fraction", config.holdout_fraction, 0.1, why)
    elif not config.evaluation_data and 0 < held < _MEASURABLE and rows >= 3 * _MEASURABLE:
        share = min(0.3, math.ceil(100 * 1.5 * _MEASURABLE / rows) / 100)
        if share > config.holdout_fraction:
            why = f"{_count(held, 'row')} held out of {rows:,}: a single one is {1 / held:.0%} of what is measured."
            yield _better("holdout_fraction", config.holdout_fraction, share, why)


def _evaluations(job: JobFacts) -> Iterator[Improvement]:
    hyper, steps = job.config.hyperparameters, job.total_steps
    if not job.evaluation.num_examples or steps < 5:
        return
    if hyper.eval_steps > steps:
        stop = "" if not hyper.early_stopping_patience else " and it is never stopped early"
        why = f"The job has {steps:,} steps: it is evaluated once, at its end, so that no earlier one is chosen{stop}."
        yield _better("hyperparameters.eval_steps", hyper.eval_steps, max(1, steps // 5), why)
        return
    setup = job.setup_with()
    evaluations = steps // hyper.eval_steps + 1
    evaluating = job.evaluation.num_tokens * evaluations * evaluation_flops_per_token(job.architecture, setup)
    training = job.train.num_tokens * job.passes * flops_per_token(job.architecture, setup)
    share, (much, enough) = evaluating / max(training, 1.0), _EVALUATING
    if share > much:
        rarer = min(math.ceil(hyper.eval_steps * share / enough), steps)
        why = (
            f"{evaluations:,} evaluations of {job.evaluation.num_examples:,} rows add {share:.0%} to the training's "
            "operations."
        )
        yield _better("hyperparameters.eval_steps", hyper.eval_steps, rarer, why)


def _saves(job: JobFacts) -> Iterator[Improvement]:
    hyper, steps = job.config.hyperparameters, job.total_steps
    evaluated = job.evaluation.num_examples > 0 and hyper.eval_steps <= steps
    if job.seconds is None or evaluated or hyper.save_steps <= steps or job.seconds < _LONG_UNSAVED:
        return
    minutes = job.seconds / 60
    why = f"No checkpoint is written before the last of {steps:,} steps: a failure costs up to {minutes:.0f} minutes."
    yield _better("hyperparameters.save_steps", hyper.save_steps, max(1, steps // 5), why)


def _method(job: JobFacts) -> Iterator[Improvement]:
    config, machine = job.config, job.machine

    def verdict(method: Any) -> tuple[str, Memory]:
        found = plan(job.architecture, machine, config.model_copy(update={"method": method}), method, job.longest)
        return found.verdict, found.memory

    if config.method == "qlora":
        fit, memory = verdict("lora")
        if fit == "comfortable":
            why = f"LoRA takes {job.of_free(memory)}: nothing has to be rounded to {config.quantization.bits} bits"
            yield _better("method", "qlora", "lora", f"{why}, and no pass has to expand it again.")
    elif config.method == "lora" and machine.on_gpu and machine.quantises and not fits(job.memory, machine):
        fit, memory = verdict("qlora")
        if fit == "comfortable":
            why = f"LoRA takes {job.of_free(job.memory)}, QLoRA up to {_gib(memory.upper_bytes)}."
            yield _better("method", "lora", "qlora", why)
    elif config.method == "full" and 100 * (trained := _once(job)) < job.architecture.num_parameters:
        _, memory = verdict("lora")
        why = (
            f"{'About ' * (job.repetition > 1)}{trained:,} trained tokens have to say what "
            f"{job.architecture.num_parameters:,} weights become. LoRA leaves these alone, and takes "
            f"up to {_gib(memory.upper_bytes)} in place of {_gib(job.memory.upper_bytes)}."
        )
        yield _better("method", "full", "lora", why)


def _quantisation(job: JobFacts) -> Iterator[Improvement]:
    config, quantised = job.config, job.config.quantization
    if config.method != "qlora":
        return
    if quantised.bits == 4 and quantised.bnb_4bit_quant_type == "fp4":
        why = "As many bits as fp4, with steps that are made for weights spread like a bell, as those of models are."
        weights = _gib(job.memory["weights"])
        yield _better("quantization.bnb_4bit_quant_type", "fp4", "nf4", f"{why} The {weights} stay the same.")
    if quantised.bits == 4 and not quantised.bnb_4bit_use_double_quant:
        double = config.model_copy(
            update={"quantization": quantised.model_copy(update={"bnb_4bit_use_double_quant": True})}
        )
        setup = Setup.of(double, on_gpu=job.machine.on_gpu, length=job.longest)
        saved = Estimator(job.architecture, job.setup_with()).weights - Estimator(job.architecture, setup).weights
        why = f"Saves {_gib(saved)} of weights: their scales are quantised as well."
        yield _better("quantization.bnb_4bit_use_double_quant", False, True, why)
    if job.machine.bf16 and quantised.bnb_4bit_compute_dtype in ("fp16", "fp32"):
        current = quantised.bnb_4bit_compute_dtype
        why = f"{job.machine.name} computes in bf16: {_OVER[current]}."
        yield _better("quantization.bnb_4bit_compute_dtype", current, "bf16", why)


def _precision(job: JobFacts) -> Iterator[Improvement]:
    current = job.config.hyperparameters.precision
    if job.machine.bf16 and current in _OVER:
        smaller = job.memory.upper_bytes - job.memory_with(precision="bf16").upper_bytes
        saved = f", and it takes {_gib(smaller)} less" if smaller > 0.05 * GIB else ""
        why = f"{job.machine.name} computes in bf16: {_OVER[current]}{saved}."
        yield _better("hyperparameters.precision", current, "bf16", why)


def _recomputation(job: JobFacts) -> Iterator[Improvement]:
    path, on = "hyperparameters.gradient_checkpointing", job.config.hyperparameters.gradient_checkpointing
    other = job.memory_with(gradient_checkpointing=not on)
    if on and fits(other, job.machine):
        more = flops_per_token(job.architecture, job.setup_with())
        more /= flops_per_token(job.architecture, job.setup_with(gradient_checkpointing=False))
        why = f"Without recomputation it takes {job.of_free(other)}, and {1 - 1 / more:.0%} fewer operations."
        yield _better(path, True, False, why)
    elif not on and not fits(job.memory, job.machine) and fits(other, job.machine):
        why = f"Memory is short: {job.of_free(job.memory)}; with recomputation up to {_gib(other.upper_bytes)}."
        yield _better(path, False, True, why)


def _optimizer(job: JobFacts) -> Iterator[Improvement]:
    optim, machine = job.config.hyperparameters.optim, job.machine
    if not (machine.on_gpu and machine.quantises and optim.startswith("adamw_torch")) or fits(job.memory, machine):
        return
    smaller = job.memory_with(optim="adamw_8bit")
    if smaller.upper_bytes < 0.95 * job.memory.upper_bytes:
        why = f"Its states take {_gib(job.memory['optimizer'])}; in 8 bits {_gib(smaller['optimizer'])}."
        yield _better("hyperparameters.optim", optim, "adamw_8bit", why)


def _batch(job: JobFacts) -> Iterator[Improvement]:
    hyper = job.config.hyperparameters
    rows, passes = hyper.per_device_train_batch_size, hyper.gradient_accumulation_steps
    # On a processor more rows at once only pad each other.
    if not job.machine.on_gpu or rows >= 8 or job.num_sequences < rows * passes:
        return
    best, memory = rows, job.memory
    while passes * rows % (2 * best) == 0 and 2 * best <= min(8, passes * rows):
        larger = job.memory_with(per_device_train_batch_size=2 * best)
        if not fits(larger, job.machine):
            break
        best, memory = 2 * best, larger
    if best > rows:
        why = (
            f"{_gib(job.machine.free_bytes - job.memory.upper_bytes)} stay unused. With "
            f"gradient_accumulation_steps = {passes * rows // best} a step is the same {rows * passes} rows in fewer, "
            f"larger passes, and takes {job.of_free(memory)}."
        )
        yield _better("hyperparameters.per_device_train_batch_size", rows, best, why)


def _padding(job: JobFacts) -> Iterator[Improvement]:
    hyper = job.config.hyperparameters
    if hyper.packing:
        if not job.machine.on_gpu:
            apart = job.memory_with(packing=False)
            why = (
                f"A processor gains no speed by packs of {hyper.max_length:,} tokens: they take up to "
                f"{_gib(job.memory.upper_bytes)}, single rows of at most {job.longest:,} up to "
                f"{_gib(apart.upper_bytes)}."
            )
            yield _better("hyperparameters.packing", True, False, why)
        return
    share = padding_share(job.train.lengths, hyper.per_device_train_batch_size)
    if hyper.group_by_length or share < _PADDED:
        return
    padded = f"Rows of {min(job.train.lengths):,} to {job.longest:,} tokens beside each other are {share:.0%} padding"
    filled = job.train.num_tokens / max(job.num_packed * hyper.max_length, 1)
    steps = math.ceil(job.total_steps * job.num_packed / job.train.num_examples)
    packed = job.memory_with(packing=True)
    if job.machine.on_gpu and filled >= _FULL_PACKS and steps >= _FEW_STEPS and fits(packed, job.machine):
        why = (
            f"{padded}; {job.num_packed:,} packs of {hyper.max_length:,} are {filled:.0%} full. The job then has "
            f"about {steps:,} steps in place of {job.total_steps:,}, and takes {job.of_free(packed)}."
        )
        yield _better("hyperparameters.packing", False, True, why)
    else:
        yield _better("hyperparameters.group_by_length", False, True, f"{padded}; rows of one length need none.")


def _length(job: JobFacts) -> Iterator[Improvement]:
    path, limit = "hyperparameters.max_length", job.config.hyperparameters.max_length
    cut, rows = job.train.num_truncated + job.train.num_cut_off, job.train.num_examples + job.train.num_cut_off
    if cut > _CUT * rows:
        longer = min(2 * limit, job.architecture.context or 2 * limit)
        memory = job.memory_with(length=longer, max_length=longer)
        if longer > limit and fits(memory, job.machine):
            which = f"{cut / rows:.0%} of the" if job.repetition > 1 else f"{cut:,} of {rows:,}"
            lost = "beginning" if job.config.hyperparameters.truncation == "keep_end" else "end"
            why = f"{which} rows lose their {lost}. With {longer:,} it takes {job.of_free(memory)}."
            yield _better(path, limit, longer, why)
        return
    enough = max(64, _power_of_two(job.longest))
    if not cut and not job.config.hyperparameters.packing and limit >= 4 * enough:
        memory = job.memory_with(length=limit)
        if memory.upper_bytes >= 1.5 * job.memory.upper_bytes:
            what = (
                "which would not fit"
                if not fits(memory, job.machine)
                else f"in place of {_gib(job.memory.upper_bytes)}"
            )
            why = (
                f"The longest row has {job.longest:,} tokens: {enough:,} cuts nothing. One stray row of {limit:,} in "
                f"a later version of the data would take up to {_gib(memory.upper_bytes)}, {what}."
            )
            yield _better(path, limit, enough, why)
    most = _power_of_two(job.train.percentiles().get(99, job.longest))
    if 4 * most <= job.longest and not job.config.hyperparameters.packing:
        memory = job.memory_with(length=most)
        if memory.upper_bytes < 0.8 * job.memory.upper_bytes:
            longer_rows = sum(count for length, count in job.train.lengths.items() if length > most)
            which = f"{_count(longer_rows, 'row')} of {job.train.num_examples:,}"
            if job.repetition > 1:
                which = f"{longer_rows / job.train.num_examples:.1%} of the rows"
            why = (
                f"{which} have more than {most:,} tokens, and alone "
                f"make it take up to {_gib(job.memory.upper_bytes)} in place of {_gib(memory.upper_bytes)}."
            )
            yield _better(path, limit, most, why)


_RULES: Final[Sequence[Callable[[JobFacts], Iterator[Improvement]]]] = (
    _learning_rate,
    _warm_up,
    _few_steps,
    _passes,
    _scale,
    _holdout,
    _method,
    _quantisation,
    _precision,
    _recomputation,
    _optimizer,
    _batch,
    _length,
    _padding,
    _evaluations,
    _saves,
)  # fmt: skip
"""What decides whether anything is learnt, then what decides time and memory."""
_TITLES: Final = {"lora": "LoRA", "qlora": "QLoRA", "full": "full fine-tuning"}
_OVER: Final = {
    "fp16": "the range of fp32, so that no loss has to be scaled and none overflows",
    "fp32": "the same range in half the bytes, and faster",
}


def padding_share(lengths: Mapping[int, int], rows: int) -> float:
    """Of the tokens of a batch of so many rows, drawn at random from rows of these lengths, the share that is padding,
    as expected."""
    total = sum(lengths.values())
    seen, below, longest = 0, 0.0, 0.0
    for length, count in sorted(lengths.items()):
        seen += count
        # That the longest of the rows is no longer than this.
        here = (seen / total) ** rows
        longest += length * (here - below)
        below = here
    mean = sum(length * count for length, count in lengths.items()) / max(total, 1)
    return 1 - mean / longest if longest else 0.0


def _once(job: JobFacts) -> int:
    """Trained tokens of the data, those of a row in several phases once."""
    return round(job.train.num_trained_tokens / job.repetition)


def _better(field: str, current: object, suggested: object, reason: str) -> Improvement:
    return Improvement(field, _text(current), _text(suggested), reason)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 9.5 else f"{ratio:.1f} times"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _power_of_two(tokens: int) -> int:
    return 1 << max(tokens - 1, 0).bit_length()
