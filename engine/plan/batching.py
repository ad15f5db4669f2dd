"""Chooses the automatic batches of a job: packing, grouping, rows of a step, micro-batches and recomputation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engine.config.job import MICRO_BATCH, ROWS_PER_STEP, JobConfig
from engine.config.steps import count_steps
from engine.estimate.advice import padding_share
from engine.estimate.architecture import Architecture
from engine.plan.free_memory import FreeMemory
from engine.plan.resolved import Resolved

ENOUGH_STEPS: Final = 100
"""Optimizer steps below which a step takes fewer rows than ROWS_PER_STEP: Adam changes a weight by about the learning
rate in each step, whatever the rows of the step, so a training of few steps stops near the weights it started from."""
_LEAST_ROWS: Final = 2
"""Rows of a step below which it is not lowered: the gradient of a single row is mostly noise, and rows of one batch
share the time of reading the weights."""
_PADDED: Final = 0.1
"""Share of padding from which rows are grouped or packed. Below it the time saved is less than a tenth, and rows that
are not sorted by length are mixed better."""
_PATH: Final = "hyperparameters."


@dataclass(frozen=True)
class TrainingRows:
    """The rows that batches are made of."""

    lengths: Mapping[int, int]
    """Tokens of a row → number of rows of that length."""
    rows: Sequence[int]
    """Number of rows of each phase; one number if the job has no phases."""
    packs: Sequence[int]
    """Number of packs of each phase, if rows are packed."""

    @property
    def rows_per_pack(self) -> float:
        return sum(self.rows) / max(sum(self.packs), 1)


def resolve_batches(
    resolved: Resolved, memory: FreeMemory, architecture: Architecture, rows: TrainingRows | None
) -> None:
    """Resolves what decides the batches. Method, precision, optimizer and attention must be resolved.

    `rows` is None if no row was counted; a step then has the usual rows, and rows are neither packed nor grouped.
    """
    if resolved.config.hyperparameters.streaming and resolved.config.hyperparameters.packing is None:
        resolved.choose(f"{_PATH}packing", True, "a streamed corpus is packed to max_length, without padding")
    if resolved.config.hyperparameters.packing is None:
        resolved.choose(f"{_PATH}packing", *_packing(resolved.config, memory, architecture, rows))
    _micro_batches(resolved, memory, rows)
    if resolved.config.hyperparameters.group_by_length is None:
        resolved.choose(f"{_PATH}group_by_length", *_grouping(resolved.config, rows))
    if resolved.config.hyperparameters.per_device_eval_batch_size is None:
        resolved.choose(f"{_PATH}per_device_eval_batch_size", *_evaluation_batch(resolved.config, memory))


def with_rows_per_step(config: JobConfig, rows: TrainingRows) -> JobConfig:
    """Returns an automatic job with the rows per step that its rows decide, for counting steps without a machine."""
    wanted = max(1, _rows_of_step(config, rows) // config.world_size)
    micro = min(wanted, MICRO_BATCH)
    update = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": wanted // micro}
    return config.model_copy(update={"hyperparameters": config.hyperparameters.model_copy(update=update)})


def _packing(
    config: JobConfig, memory: FreeMemory, architecture: Architecture, rows: TrainingRows | None
) -> tuple[bool, str]:
    hyper = config.hyperparameters
    if not memory.on_gpu:
        # Measured: docs/estimates.md.
        return False, "packing is not faster on a CPU, and takes more memory"
    if architecture.family != "decoder" or hyper.attn_implementation != "flash_attention_2":
        # The others isolate rows by a mask over the whole pack, whose every position they compute.
        why = "only flash_attention_2 computes the rows of a pack without the positions between them"
        return False, f"{why}; this job has {hyper.attn_implementation}"
    if hyper.per_device_train_batch_size is not None or hyper.gradient_accumulation_steps is not None:
        return False, "packing would change the number of rows per step, which is given"
    if hyper.group_by_length:
        return False, "group_by_length is given, and avoids padding too"
    if rows is None:
        return False, "no rows were counted"
    share = padding_share(rows.lengths, MICRO_BATCH)
    if share < _PADDED:
        return False, f"batches of rows have only {share:.0%} padding"
    per_pack = f"a pack of {hyper.max_length:,} tokens holds {rows.rows_per_pack:.1f} rows on average"
    if rows.rows_per_pack < 2:
        return False, f"the rows are long: {per_pack}"
    if rows.rows_per_pack > (most := _rows_of_step(config, rows)):
        return False, f"the rows are short: {per_pack}, more than the {most} of a step"
    one = {"packing": True, "per_device_train_batch_size": 1}
    if not memory.holds(config, **one):
        return False, f"with packs of {hyper.max_length:,} tokens the training {memory.compared(config, **one)}"
    return True, f"batches of rows are {share:.0%} padding, packs have none; {per_pack}"


def _rows_of_step(config: JobConfig, rows: TrainingRows) -> int:
    """Returns the rows of a step: as many as usual, or so few that the job has enough steps."""
    hyper, wanted = config.hyperparameters, ROWS_PER_STEP
    while wanted > _LEAST_ROWS and hyper.max_steps is None and _steps(config, rows, wanted) < ENOUGH_STEPS:
        wanted //= 2
    return wanted


def _steps(config: JobConfig, rows: TrainingRows, rows_per_step: int) -> int:
    """Returns the steps of the job without packing."""
    accumulation = max(1, rows_per_step // config.world_size)
    update = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": accumulation}
    hyper = config.hyperparameters.model_copy(update=update)
    return count_steps(config.model_copy(update={"hyperparameters": hyper}), rows.rows)


def _micro_batches(resolved: Resolved, memory: FreeMemory, rows: TrainingRows | None) -> None:
    """Resolves the size of a step, then the largest micro-batch that fits, and whether activations are recomputed."""
    config, hyper = resolved.config, resolved.config.hyperparameters
    micro, accumulation = hyper.per_device_train_batch_size, hyper.gradient_accumulation_steps
    wanted = ROWS_PER_STEP if rows is None else _rows_of_step(config, rows)
    why_step = _why_step(config, rows, wanted)
    if rows is not None and hyper.packing:
        wanted = max(1, round(wanted / rows.rows_per_pack))
    # From here on, the rows of one process.
    wanted = max(1, round(wanted / config.world_size))
    if micro is not None:
        sizes, accumulation = [micro], accumulation or max(1, round(wanted / micro))
    elif accumulation is not None:
        # A micro-batch chosen by memory would change the rows of a step.
        sizes = [MICRO_BATCH]
    else:
        most = wanted if memory.on_gpu else min(wanted, MICRO_BATCH)
        sizes = [size for size in range(most, 0, -1) if wanted % size == 0]
        if rows is not None and not hyper.packing and hyper.group_by_length is False:
            sizes = [size for size in sizes if size <= MICRO_BATCH or _pads_little(rows, size)]

    def changes(size: int, recompute: bool) -> dict[str, Any]:
        return {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": accumulation or wanted // size,
            "gradient_checkpointing": recompute,
        }

    tried = list(_choices(config, memory, sizes))
    size, recompute = next((one for one in tried if memory.holds(config, **changes(*one))), tried[-1])
    if micro is None:
        need = memory.compared(config, **changes(sizes[0], recompute))
        if accumulation is not None:
            why = "the usual number; gradient_accumulation_steps is given"
        elif size < sizes[0]:
            why = f"with {sizes[0]}, the training {need}"
        elif size == wanted:
            why = f"a whole step at once: the training {need}"
        elif memory.on_gpu:
            why = "larger ones have more padding, because group_by_length is off"
        else:
            why = "larger ones are not faster on a CPU"
        resolved.choose(f"{_PATH}per_device_train_batch_size", size, why)
    if hyper.gradient_accumulation_steps is None:
        resolved.choose(f"{_PATH}gradient_accumulation_steps", accumulation or wanted // size, why_step)
    if hyper.gradient_checkpointing is None:
        without = memory.compared(resolved.config, gradient_checkpointing=False)
        resolved.choose(f"{_PATH}gradient_checkpointing", recompute, f"without it, the training {without}")


def _pads_little(rows: TrainingRows, size: int) -> bool:
    return padding_share(rows.lengths, size) - padding_share(rows.lengths, MICRO_BATCH) < _PADDED


def _choices(config: JobConfig, memory: FreeMemory, sizes: Sequence[int]) -> Iterator[tuple[int, bool]]:
    """Yields (micro-batch, recomputation), the fastest first.

    Recomputation repeats the forward pass. Small micro-batches cost less than that on a CPU, and on a GPU as long as a
    micro-batch has some rows, or is a pack.
    """
    asked = config.hyperparameters.gradient_checkpointing
    if asked is not None:
        yield from ((size, asked) for size in sizes)
        return
    least = min(MICRO_BATCH, sizes[0]) if memory.on_gpu and not config.hyperparameters.packing else 1
    yield from ((size, False) for size in sizes if size >= least)
    yield from ((size, True) for size in sizes)


def _why_step(config: JobConfig, rows: TrainingRows | None, wanted: int) -> str:
    if rows is None or wanted == ROWS_PER_STEP:
        return f"a step has about {ROWS_PER_STEP} rows"
    fewer = f"{ROWS_PER_STEP} rows a step would make {_steps(config, rows, ROWS_PER_STEP)} steps, which are few"
    return f"{fewer}; {wanted} make {_steps(config, rows, wanted)}"


def _grouping(config: JobConfig, rows: TrainingRows | None) -> tuple[bool, str]:
    hyper = config.hyperparameters
    if hyper.packing:
        return False, "packs have no padding"
    if rows is None:
        return False, "no rows were counted"
    share = padding_share(rows.lengths, hyper.micro_batch)
    batches = f"micro-batches of {hyper.micro_batch} rows of any length would be {share:.0%} padding"
    return share >= _PADDED, batches if hyper.micro_batch > 1 else "a micro-batch has one row, and no padding"


def _evaluation_batch(config: JobConfig, memory: FreeMemory) -> tuple[int, str]:
    rows = config.hyperparameters.micro_batch
    if rows < MICRO_BATCH and memory.holds(config, per_device_train_batch_size=MICRO_BATCH):
        return MICRO_BATCH, "they would fit in training, which takes more memory"
    return rows, "as in training, which takes more memory"
