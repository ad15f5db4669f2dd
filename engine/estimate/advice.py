"""Suggestions that improve a job, each computed from the job's own rows, model and machine, with its reason."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from engine.config.job import JobConfig, chosen
from engine.config.schedule import num_warmup_steps
from engine.config.steps import num_evaluations, total_steps
from engine.data.statistics import Statistics
from engine.estimate.architecture import Architecture
from engine.estimate.duration import Work, evaluation_share, flops_per_token
from engine.estimate.machine import Machine
from engine.estimate.memory import GIB, Estimator, Memory, Setup, estimate_memory
from engine.estimate.recommend import fits, plan
from engine.random_reference import RandomReference, has_random_weights

_RATES: Final[Mapping[str, tuple[float, float, float]]] = {
    "lora": (5e-5, 1e-3, 2e-4),
    "qlora": (5e-5, 1e-3, 2e-4),
    "full": (1e-6, 1e-4, 2e-5),
}
"""Learning rates by method: the lowest and the highest usual one, and a typical one. Adapters start at zero and need
large steps; pretrained weights do not tolerate them."""
_RATES_FROM_SCRATCH: Final = (2e-5, 3e-3, 3e-4)
"""The same for random weights. GPT-3's sizes were trained with 6e-5 to 6e-4 (arXiv 2005.14165, table 2.1); small models
of today with up to 3e-3."""
_SCALES: Final = {False: (0.5, 4.0, 2.0), True: (0.5, 8.0, 4.0)}
"""Scales by use_rslora: usual range and typical value of the adapter's scale, lora_alpha / r or lora_alpha / √r."""
_RANK: Final = 16
"""A common rank."""
_FEW_STEPS: Final = 30
_WARM_UP: Final = (0.3, 0.05)
"""Share of the steps above which a warm-up counts as long, and a common share."""
_MANY_EPOCHS: Final = 5
_FEW_ROWS: Final = 500
_MEASURABLE: Final = 20
"""Number of held-out rows below which one row is more than 5 % of the evaluation loss."""
_PADDED: Final = 0.25
"""Share of padding from which avoiding it is suggested."""
_FULL_PACKS: Final = 0.8
"""Share of trained positions in packs from which packing is suggested."""
_EVALUATING: Final = (0.25, 0.1)
"""Operations of all evaluations as a share of those of training: the share from which fewer are suggested, and the
share that the suggestion aims at."""
_CUT: Final = 0.01
"""Share of truncated rows from which a larger max_length is suggested."""
_LONG_UNSAVED: Final = 600.0
"""Seconds of training that may be lost to a failure before an earlier checkpoint is suggested."""


@dataclass(frozen=True)
class Improvement:
    """A suggested change of one field."""

    field: str
    """Path in the spec, such as `hyperparameters.packing`."""
    current: str
    """Present value, as `--set` accepts it."""
    suggested: str
    """Suggested value, as `--set` accepts it."""
    reason: str
    """One or two sentences with the figures behind the suggestion."""


@dataclass(frozen=True)
class JobFacts:
    """A resolved job with its data and its machine."""

    config: JobConfig
    architecture: Architecture
    machine: Machine
    train: Statistics
    evaluation: Statistics
    """Counts of the held-out rows."""
    num_packed: int
    """Number of sequences that packing makes, or would make, of the training rows."""
    num_distinct: int
    """Number of distinct rows, held-out ones included: a row used by several phases counts once."""
    total_steps: int
    passes: float
    """Epochs over the training rows."""
    seconds: float | None = None
    """Estimated time of training; None if it was not estimated."""
    automatic: frozenset[str] = frozenset()
    """Paths of the fields that preflight chose; nothing is suggested for them."""

    @property
    def longest(self) -> int:
        """Tokens of the longest training row."""
        return self.train.max_tokens or self.config.hyperparameters.max_length

    @property
    def repetition(self) -> float:
        """Mean number of phases that use the same row; 1 without phases."""
        counted = self.train.num_examples + self.train.num_dropped + self.evaluation.num_examples
        return max(1.0, counted / max(self.num_distinct, 1)) if self.config.phases else 1.0

    @property
    def rows_per_step(self) -> int:
        return self.config.rows_per_step

    @property
    def num_sequences(self) -> int:
        return self.num_packed if self.config.hyperparameters.packing else self.train.num_examples

    @cached_property
    def memory(self) -> Memory:
        return self.memory_with()

    def memory_with(self, *, length: int | None = None, **hyper: Any) -> Memory:
        """The memory with other hyperparameters, or with a longest row of `length` tokens."""
        return estimate_memory(self.architecture, self.setup_with(length=length, **hyper))

    def setup_with(self, *, length: int | None = None, **hyper: Any) -> Setup:
        changed = self.config.hyperparameters.model_copy(update=hyper)
        config = self.config.model_copy(update={"hyperparameters": changed})
        return Setup.of(config, on_gpu=self.machine.on_gpu, length=length or self.longest)

    def of_free(self, memory: Memory) -> str:
        """The upper bound of `memory` beside the free memory, for use after "takes"."""
        return f"up to {_gib(memory.upper_bytes)} of {_gib(self.machine.free_bytes)} free"


def improvements(job: JobFacts) -> list[Improvement]:
    """Returns at most one suggestion for each field, the most important first; none if no training row was counted."""
    if not job.train.num_examples:
        return []
    found: dict[str, Improvement] = {}
    for rule in _RULES:
        for improvement in rule(job):
            if improvement.suggested != improvement.current and improvement.field not in job.automatic:
                found.setdefault(improvement.field, improvement)
    return list(found.values())


def _learning_rate(job: JobFacts) -> Iterator[Improvement]:
    low, high, middle = _RATES[job.config.method]
    rate, title = job.config.hyperparameters.learning_rate, _TITLES[job.config.method]
    if job.config.method == "full" and has_random_weights(job.config.base_model):
        (low, high, middle), title = _RATES_FROM_SCRATCH, "training from random weights"
    usual = f"rate usually used for {title} ({low:g} to {high:g})"
    if rate > high:
        why = f"{rate:g} is {_times(rate / high)} the highest {usual}: the loss often spikes or becomes NaN."
        yield _better("hyperparameters.learning_rate", rate, middle, why)
    elif rate < low:
        steps = _count(job.total_steps, "step")
        why = f"{rate:g} is {_times(low / rate)} smaller than the lowest {usual}: {steps} change the weights little."
        yield _better("hyperparameters.learning_rate", rate, middle, why)


def _warm_up(job: JobFacts) -> Iterator[Improvement]:
    hyper, steps = job.config.hyperparameters, job.total_steps
    many, common = _WARM_UP
    warm = num_warmup_steps(hyper, steps)
    if warm <= max(1, many * steps):
        return
    why = f"Warm-up takes {warm:,} of {steps:,} steps and leaves {_count(steps - warm, 'step')} after it."
    if hyper.warmup_steps is not None:
        yield _better("hyperparameters.warmup_steps", hyper.warmup_steps, math.floor(common * steps), why)
    else:
        yield _better("hyperparameters.warmup_ratio", hyper.warmup_ratio, common, why)


def _few_steps(job: JobFacts) -> Iterator[Improvement]:
    hyper = job.config.hyperparameters
    if job.total_steps >= _FEW_STEPS or hyper.max_steps is not None or job.config.phases:
        return
    rows, accumulation = hyper.micro_batch, hyper.accumulation
    noun = "pack" if hyper.packing else "row"
    per_step = _count(min(job.rows_per_step, job.num_sequences), noun)
    made = f"{_count(job.num_sequences, noun)} make {_count(job.total_steps, 'step')} of {per_step}, which is few."

    def steps_with(**changed: int) -> int:
        changed_config = job.config.model_copy(update={"hyperparameters": hyper.model_copy(update=changed)})
        return total_steps(job.num_sequences, changed_config)

    fewer = max(1, accumulation * job.total_steps // _FEW_STEPS)
    steps = steps_with(gradient_accumulation_steps=fewer)
    if steps > job.total_steps:
        why = f"{made} With gradient_accumulation_steps = {fewer} there are {_count(steps, 'step')}."
        yield _better("hyperparameters.gradient_accumulation_steps", accumulation, fewer, why)
        return
    # If one micro-batch takes all rows, or nearly all, only smaller micro-batches make more steps.
    smaller = min(rows, max(1, math.floor(job.num_sequences * hyper.num_epochs / _FEW_STEPS)))
    steps = steps_with(per_device_train_batch_size=smaller, gradient_accumulation_steps=1)
    if steps > job.total_steps:
        both = f"per_device_train_batch_size = {smaller} and gradient_accumulation_steps = 1"
        why = f"{made} With {both} there are {_count(steps, 'step')}."
        yield _better("hyperparameters.per_device_train_batch_size", rows, smaller, why)
        yield _better("hyperparameters.gradient_accumulation_steps", accumulation, 1, why)
    elif hyper.num_epochs < _MANY_EPOCHS and job.total_steps * _MANY_EPOCHS / hyper.num_epochs >= _FEW_STEPS / 3:
        more = min(float(_MANY_EPOCHS), math.ceil(hyper.num_epochs * _FEW_STEPS / max(job.total_steps, 1)))
        if more > hyper.num_epochs:
            why = f"The job has only {_count(job.total_steps, 'step')} of {per_step} each."
            yield _better("hyperparameters.num_epochs", hyper.num_epochs, more, why)


def _passes(job: JobFacts) -> Iterator[Improvement]:
    hyper, rows = job.config.hyperparameters, job.train.num_examples
    stops = (
        job.evaluation.num_examples > 0
        and 0 < hyper.early_stopping_patience * chosen(hyper.eval_steps) < job.total_steps
    )
    many = 2 * _MANY_EPOCHS if stops else _MANY_EPOCHS
    if job.config.phases or job.passes <= many or (rows >= _FEW_ROWS and job.passes <= 2 * many):
        return
    unseen = "" if job.evaluation.num_examples else ", and without held-out rows nothing shows it"
    why = f"Each of the {rows:,} rows is trained on {job.passes:.0f} times: the model overfits to them{unseen}."
    if hyper.max_steps is not None:
        yield _better("hyperparameters.max_steps", hyper.max_steps, math.ceil(job.total_steps * 3 / job.passes), why)
    else:
        yield _better("hyperparameters.num_epochs", hyper.num_epochs, 3, why)


def _scale(job: JobFacts) -> Iterator[Improvement]:
    lora = job.config.lora
    if job.config.method == "full" or (job.config.start_from and job.config.start_mode == "continue"):
        # All weights have no scale, and an adapter that is trained further keeps its own.
        return
    targeted = {layer for layers in job.architecture.targets(lora) for layer in layers}
    widest = max((min(layer.rows, layer.columns) for layer in targeted), default=lora.r)
    if lora.r > widest:
        # Nor would another alpha help: a matrix has no higher rank than its narrower side.
        wider = f"exceeds the width of every targeted layer (at most {widest:,})"
        why = f"lora.r = {lora.r:,} {wider}; the rest is wasted memory."
        yield _better("lora.r", lora.r, min(_RANK, widest), why)
        return
    low, high, middle = _SCALES[lora.use_rslora]
    root = math.sqrt(lora.r) if lora.use_rslora else float(lora.r)
    scale = lora.lora_alpha / root
    if not low <= scale <= high:
        what = "√r" if lora.use_rslora else "r"
        effect = (
            "The adapters hardly affect the output." if scale < low else "Every update is amplified by this factor."
        )
        why = f"lora_alpha / {what} = {scale:.3g} scales the adapters; {low:g} to {high:g} is usual. {effect}"
        yield _better("lora.lora_alpha", lora.lora_alpha, round(middle * root), why)


def _holdout(job: JobFacts) -> Iterator[Improvement]:
    config, held = job.config, job.evaluation.num_examples
    rows = job.num_distinct
    if not config.evaluates_while_training and rows >= 50:
        why = (
            f"None of the {rows:,} rows is held out: nothing measures whether training helped, training never stops "
            "early, and the last checkpoint is exported instead of the best."
        )
        yield _better("holdout_fraction", config.holdout_fraction, 0.1, why)
    elif not config.evaluation_data and 0 < held < _MEASURABLE and rows >= 3 * _MEASURABLE:
        share = min(0.3, math.ceil(100 * 1.5 * _MEASURABLE / rows) / 100)
        if share > config.holdout_fraction:
            verb = "is" if held == 1 else "are"
            why = f"{_count(held, 'row')} of {rows:,} {verb} held out: one row is {1 / held:.0%} of the evaluation."
            yield _better("holdout_fraction", config.holdout_fraction, share, why)


def _evaluations(job: JobFacts) -> Iterator[Improvement]:
    hyper, steps = job.config.hyperparameters, job.total_steps
    if not job.evaluation.num_examples or steps < 5:
        return
    every = chosen(hyper.eval_steps)
    if every > steps:
        stop = "" if not hyper.early_stopping_patience else " and early stopping has no effect"
        why = f"The job has {steps:,} steps and is evaluated only after the last: no earlier one can be chosen{stop}."
        yield _better("hyperparameters.eval_steps", every, max(1, steps // 5), why)
        return
    setup = job.setup_with()
    evaluations = num_evaluations(steps, hyper)
    work = Work(job.train.num_tokens * job.passes, job.evaluation.num_tokens * evaluations)
    share, (much, enough) = evaluation_share(job.architecture, setup, work), _EVALUATING
    if share > much:
        rarer = min(math.ceil(every * share / enough), steps)
        why = (
            f"{evaluations:,} evaluations of {job.evaluation.num_examples:,} rows add {share:.0%} to the operations "
            "of training."
        )
        yield _better("hyperparameters.eval_steps", every, rarer, why)


def _saves(job: JobFacts) -> Iterator[Improvement]:
    hyper, steps = job.config.hyperparameters, job.total_steps
    evaluated = job.evaluation.num_examples > 0 and chosen(hyper.eval_steps) <= steps
    if job.seconds is None or evaluated or chosen(hyper.save_steps) <= steps or job.seconds < _LONG_UNSAVED:
        return
    minutes = job.seconds / 60
    why = f"No checkpoint is saved before the last of {steps:,} steps: a failure costs up to {minutes:.0f} minutes."
    yield _better("hyperparameters.save_steps", hyper.save_steps, max(1, steps // 5), why)


def _method(job: JobFacts) -> Iterator[Improvement]:
    config, machine = job.config, job.machine

    def verdict(method: Any) -> tuple[str, Memory]:
        found = plan(job.architecture, machine, config.model_copy(update={"method": method}), method, job.longest)
        return found.verdict, found.memory

    if config.method == "qlora":
        fit, memory = verdict("lora")
        if fit == "comfortable":
            bits = config.quantization.bits
            why = f"LoRA takes {job.of_free(memory)}: the {bits}-bit quantization, which costs precision and time, "
            yield _better("method", "qlora", "lora", f"{why}is not needed.")
    elif config.method == "lora" and machine.on_gpu and machine.quantises and not fits(job.memory, machine):
        fit, memory = verdict("qlora")
        if fit == "comfortable":
            why = f"LoRA takes {job.of_free(job.memory)}, QLoRA up to {_gib(memory.upper_bytes)}."
            yield _better("method", "lora", "qlora", why)
    elif (
        config.method == "full"
        and RandomReference.parse(config.base_model) is None
        and 100 * (trained := _num_distinct_trained_tokens(job)) < job.architecture.num_parameters
    ):
        _, memory = verdict("lora")
        why = (
            f"{'About ' * (job.repetition > 1)}{trained:,} trained tokens are few to train "
            f"{job.architecture.num_parameters:,} weights. LoRA freezes them and trains small adapters; it takes "
            f"up to {_gib(memory.upper_bytes)} instead of {_gib(job.memory.upper_bytes)}."
        )
        yield _better("method", "full", "lora", why)


def _quantisation(job: JobFacts) -> Iterator[Improvement]:
    config, quantised = job.config, job.config.quantization
    if config.method != "qlora":
        return
    if quantised.bits == 4 and quantised.bnb_4bit_quant_type == "fp4":
        why = "nf4 has as many bits as fp4, with levels chosen for normally distributed weights, as models have them."
        weights = _gib(job.memory["weights"])
        yield _better("quantization.bnb_4bit_quant_type", "fp4", "nf4", f"{why} The weights still take {weights}.")
    if quantised.bits == 4 and not quantised.bnb_4bit_use_double_quant:
        double = config.model_copy(
            update={"quantization": quantised.model_copy(update={"bnb_4bit_use_double_quant": True})}
        )
        setup = Setup.of(double, on_gpu=job.machine.on_gpu, length=job.longest)
        saved = Estimator(job.architecture, job.setup_with()).weights - Estimator(job.architecture, setup).weights
        why = f"Saves {_gib(saved)} of memory by quantizing the scales of the weights as well."
        yield _better("quantization.bnb_4bit_use_double_quant", False, True, why)
    if job.machine.bf16 and quantised.bnb_4bit_compute_dtype in ("fp16", "fp32"):
        current = quantised.bnb_4bit_compute_dtype
        why = f"{job.machine.name} supports bf16: {_BF16_OVER[current]}."
        yield _better("quantization.bnb_4bit_compute_dtype", current, "bf16", why)


def _precision(job: JobFacts) -> Iterator[Improvement]:
    current = job.config.hyperparameters.precision
    if job.machine.bf16 and current in _BF16_OVER:
        smaller = job.memory.upper_bytes - job.memory_with(precision="bf16").upper_bytes
        saved = f". The job takes {_gib(smaller)} less memory" if smaller > 0.05 * GIB else ""
        why = f"{job.machine.name} supports bf16: {_BF16_OVER[current]}{saved}."
        yield _better("hyperparameters.precision", current, "bf16", why)


def _gradient_checkpointing(job: JobFacts) -> Iterator[Improvement]:
    path, on = "hyperparameters.gradient_checkpointing", job.config.hyperparameters.gradient_checkpointing
    other = job.memory_with(gradient_checkpointing=not on)
    if on and fits(other, job.machine):
        more = flops_per_token(job.architecture, job.setup_with())
        more /= flops_per_token(job.architecture, job.setup_with(gradient_checkpointing=False))
        why = f"Without it the job takes {job.of_free(other)}, and needs {1 - 1 / more:.0%} fewer operations."
        yield _better(path, True, False, why)
    elif not on and not fits(job.memory, job.machine) and fits(other, job.machine):
        why = f"The job takes {job.of_free(job.memory)}; with gradient checkpointing up to {_gib(other.upper_bytes)}."
        yield _better(path, False, True, why)


def _optimizer(job: JobFacts) -> Iterator[Improvement]:
    optim, machine = job.config.hyperparameters.optim, job.machine
    if not (machine.on_gpu and machine.quantises and optim.startswith("adamw_torch")) or fits(job.memory, machine):
        return
    smaller = job.memory_with(optim="adamw_8bit")
    if smaller.upper_bytes < 0.95 * job.memory.upper_bytes:
        why = f"The optimizer's states take {_gib(job.memory['optimizer'])}; in 8 bits {_gib(smaller['optimizer'])}."
        yield _better("hyperparameters.optim", optim, "adamw_8bit", why)


def _batch(job: JobFacts) -> Iterator[Improvement]:
    hyper = job.config.hyperparameters
    rows, accumulation = hyper.micro_batch, hyper.accumulation
    # On a CPU a larger micro-batch gains no speed and adds padding. Rows that do not fill one step need smaller steps
    # instead, which _few_steps suggests.
    if not job.machine.on_gpu or rows >= 8 or job.num_sequences < rows * accumulation:
        return
    best, memory = rows, job.memory
    while accumulation * rows % (2 * best) == 0 and 2 * best <= min(8, accumulation * rows):
        larger = job.memory_with(per_device_train_batch_size=2 * best)
        if not fits(larger, job.machine):
            break
        best, memory = 2 * best, larger
    if best > rows:
        why = (
            f"{_gib(job.machine.free_bytes - job.memory.upper_bytes)} of memory stay unused. With "
            f"gradient_accumulation_steps = {accumulation * rows // best} a step still has {rows * accumulation} rows, "
            f"in fewer and larger micro-batches, and the job takes {job.of_free(memory)}."
        )
        yield _better("hyperparameters.per_device_train_batch_size", rows, best, why)


def _padding(job: JobFacts) -> Iterator[Improvement]:
    hyper = job.config.hyperparameters
    if hyper.streaming:
        # Sequences of one length, whatever packing says.
        return
    if hyper.packing:
        if not job.machine.on_gpu:
            apart = job.memory_with(packing=False)
            why = (
                f"Packing does not speed up training on a CPU: packs of {hyper.max_length:,} tokens take up to "
                f"{_gib(job.memory.upper_bytes)}, rows of at most {job.longest:,} tokens up to "
                f"{_gib(apart.upper_bytes)}."
            )
            yield _better("hyperparameters.packing", True, False, why)
        return
    share = padding_share(job.train.lengths, hyper.micro_batch)
    if hyper.group_by_length or share < _PADDED:
        return
    padded = f"Batches of rows of {min(job.train.lengths):,} to {job.longest:,} tokens are {share:.0%} padding"
    filled = job.train.num_tokens / max(job.num_packed * hyper.max_length, 1)
    steps = math.ceil(job.total_steps * job.num_packed / job.train.num_examples)
    packed = job.memory_with(packing=True)
    if job.machine.on_gpu and filled >= _FULL_PACKS and steps >= _FEW_STEPS and fits(packed, job.machine):
        why = (
            f"{padded}; {job.num_packed:,} packs of {hyper.max_length:,} tokens are {filled:.0%} full. The job then "
            f"has about {steps:,} steps instead of {job.total_steps:,}, and takes {job.of_free(packed)}."
        )
        yield _better("hyperparameters.packing", False, True, why)
    else:
        yield _better("hyperparameters.group_by_length", False, True, f"{padded}; rows of equal length need none.")


def _length(job: JobFacts) -> Iterator[Improvement]:
    path, limit = "hyperparameters.max_length", job.config.hyperparameters.max_length
    cut, rows = job.train.num_truncated + job.train.num_cut_off, job.train.num_examples + job.train.num_cut_off
    if cut > _CUT * rows:
        longer = min(2 * limit, job.architecture.context or 2 * limit)
        memory = job.memory_with(length=longer, max_length=longer)
        if longer > limit and fits(memory, job.machine):
            which = f"{cut / rows:.0%} of the" if job.repetition > 1 else f"{cut:,} of {rows:,}"
            lost = "beginning" if job.config.hyperparameters.truncation == "keep_end" else "end"
            why = f"{which} rows lose their {lost} by truncation. With {longer:,} the job takes {job.of_free(memory)}."
            yield _better(path, limit, longer, why)
        return
    enough = max(64, _power_of_two(job.longest))
    if not cut and not job.config.hyperparameters.packing and limit >= 4 * enough:
        memory = job.memory_with(length=limit)
        if memory.upper_bytes >= 1.5 * job.memory.upper_bytes:
            what = (
                "which does not fit" if not fits(memory, job.machine) else f"instead of {_gib(job.memory.upper_bytes)}"
            )
            why = (
                f"The longest row has {job.longest:,} tokens: max_length = {enough:,} truncates no row. If a row of "
                f"{limit:,} tokens is added later, the job would need up to {_gib(memory.upper_bytes)}, {what}."
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
                f"{which} have more than {most:,} tokens. Because of them "
                f"the job takes up to {_gib(job.memory.upper_bytes)} instead of {_gib(memory.upper_bytes)}."
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
    _gradient_checkpointing,
    _optimizer,
    _batch,
    _length,
    _padding,
    _evaluations,
    _saves,
)  # fmt: skip
"""The rules in order of importance: first those for learning, then those for time and memory."""
_TITLES: Final = {"lora": "LoRA", "qlora": "QLoRA", "full": "full fine-tuning"}
_BF16_OVER: Final = {
    "fp16": "it has the range of fp32, so the loss needs no scaling and does not overflow",
    "fp32": "it has the range of fp32 in half the bytes, and is faster",
}
"""The advantage of bf16 over another precision."""


def padding_share(lengths: Mapping[int, int], rows: int) -> float:
    """Returns the expected share of padding in a batch of `rows` rows drawn at random from rows of these lengths.

    `lengths` maps the tokens of a row to the number of rows of that length.
    """
    total = sum(lengths.values())
    seen, below, longest = 0, 0.0, 0.0
    for length, count in sorted(lengths.items()):
        seen += count
        # Probability that the longest of the rows is no longer than this.
        here = (seen / total) ** rows
        longest += length * (here - below)
        below = here
    mean = sum(length * count for length, count in lengths.items()) / max(total, 1)
    return 1 - mean / longest if longest else 0.0


def _num_distinct_trained_tokens(job: JobFacts) -> int:
    """Number of trained tokens, counting a row of several phases once."""
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
