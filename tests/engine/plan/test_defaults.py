"""A job that names no batches and intervals gets those that fit its rows and its machine; named ones stand."""

from collections.abc import Mapping
from typing import Any

import pytest

from engine.config.job import JobConfig, job_config
from engine.config.recipes import recipes
from engine.config.steps import count_steps, num_evaluations
from engine.data.packing import PackCount
from engine.estimate.architecture import Architecture
from engine.estimate.duration import Work, evaluation_share
from engine.estimate.known_architectures import known
from engine.estimate.memory import Setup
from engine.estimate.recommend import RESERVE
from engine.plan.batching import ENOUGH_STEPS, TrainingRows
from engine.plan.free_memory import FreeMemory
from engine.plan.intervals import automatic_fields, resolve_intervals
from engine.plan.resolve import resolve
from engine.plan.resolved import Resolved
from finetuneflow.v1.hardware_pb2 import Gpu, Hardware

GIB = 2**30
SMALL, EIGHT_B = known("smollm2-135m"), known("llama-3.1-8b")
CPU = Hardware(memory_available_bytes=24 * GIB, cpu_features=["avx512_bf16"], packages={"bitsandbytes": "0.50"})
NAMES = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "gradient_checkpointing", "packing", "group_by_length", "eval_steps", "save_steps",
)  # fmt: skip


def card(gib: float, *packages: str) -> Hardware:
    gpu = Gpu(name="GPU", memory_free_bytes=int(gib * GIB), compute_capability="8.9", bf16=True)
    return Hardware(cuda_available=True, gpus=[gpu], packages=dict.fromkeys(("bitsandbytes", *packages), "1"))


def spread(count: int, shortest: int = 80, longest: int = 480) -> dict[int, int]:
    """Lengths spread evenly: batches of four are more than a fifth padding."""
    lengths: dict[int, int] = {}
    for index in range(count):
        length = shortest + (longest - shortest) * index // max(count - 1, 1)
        lengths[length] = lengths.get(length, 0) + 1
    return lengths


def rows_of(lengths: Mapping[int, int], max_length: int = 2048, phases: int = 0) -> TrainingRows:
    packs = PackCount(max_length)
    packs.add([length for length, count in lengths.items() for _ in range(count)])
    return TrainingRows(lengths, [sum(lengths.values())] * (phases or 1), [packs.num_sequences] * (phases or 1))


def planned(
    hardware: Hardware,
    lengths: Mapping[int, int],
    architecture: Architecture = SMALL,
    *,
    held_out: float = 0.11,
    **spec: Any,
) -> tuple[JobConfig, int, dict[str, str]]:
    """Returns the resolved job, its steps, and the reason of each choice. `held_out` is a share of the tokens."""
    data = {} if "phases" in spec else {"training_data": [{"dataset": "d"}]}
    resolved = Resolved(job_config({"base_model": "m", **data, **spec}))
    rows = rows_of(lengths, resolved.config.hyperparameters.max_length, len(resolved.config.phases))
    resolve(resolved, hardware, architecture, max(lengths), rows)
    config = resolved.config
    steps = count_steps(config, rows.packs if config.hyperparameters.packing else rows.rows)
    tokens = sum(length * count for length, count in lengths.items())
    setup = Setup.of(config, on_gpu=bool(config.resources.gpus), length=max(lengths))
    work = Work(config.hyperparameters.num_epochs * tokens, held_out * tokens)
    resolve_intervals(resolved, steps, evaluation_share(architecture, setup, work))
    assert not automatic_fields(resolved.config)
    resolved.raise_refusals()
    return resolved.config, steps, {each.field.rpartition(".")[2]: each.reason for each in resolved.resolutions}


@pytest.mark.parametrize("hardware", [CPU, card(24)], ids=["cpu", "gpu"])
@pytest.mark.parametrize(("count", "per_step", "total"), [(18, 2, 27), (166, 4, 126), (900, 16, 171), (6300, 16, 1182)])
def test_sets_of_20_to_7000_rows(hardware: Hardware, count: int, per_step: int, total: int) -> None:
    """185 rows at fixed values made 33 steps, were evaluated once, and a failure cost everything."""
    config, steps, why = planned(hardware, spread(count))
    hyper = config.hyperparameters
    assert (config.rows_per_step, steps) == (per_step, total)
    assert 5 <= num_evaluations(steps, hyper) <= 11
    assert hyper.save_steps is not None and 5 <= steps // hyper.save_steps <= 11
    assert hyper.eval_steps is not None and hyper.eval_steps % hyper.save_steps == 0
    assert hyper.micro_batch == (min(per_step, 4) if hardware is CPU else per_step)
    assert hyper.group_by_length and not hyper.packing
    assert hyper.warmup_steps == (steps * 3 // 100 if steps > 66 else 0)
    assert all(why[name] for name in NAMES), why


def test_every_choice_states_its_figures() -> None:
    """A user who disagrees has to see on what a choice is based."""
    _, _, why = planned(CPU, spread(166))
    assert "33 steps" in why["gradient_accumulation_steps"] and "126" in why["gradient_accumulation_steps"]
    assert "padding" in why["group_by_length"]
    assert "CPU" in why["packing"]
    assert "126 steps" in why["eval_steps"]
    assert "3% of 126 steps" in why["warmup_steps"]
    assert "GiB" in planned(card(24), spread(900))[2]["per_device_train_batch_size"]


@pytest.mark.parametrize("hardware", [CPU, card(24, "flash_attn")], ids=["cpu", "gpu"])
def test_what_a_caller_says_stands(hardware: Hardware) -> None:
    """Even where another value would be chosen: a number of rows per step belongs to a learning rate."""
    said: dict[str, Any] = {
        "per_device_train_batch_size": 3, "per_device_eval_batch_size": 5, "gradient_accumulation_steps": 7,
        "gradient_checkpointing": True, "packing": False, "group_by_length": False, "eval_steps": 9, "save_steps": 11,
        "warmup_ratio": 0.2,
    }  # fmt: skip
    config, _, why = planned(hardware, spread(166), hyperparameters=said)
    assert {name: getattr(config.hyperparameters, name) for name in said} == said
    assert not set(said) & set(why)
    for name, value in said.items():
        config, _, why = planned(hardware, spread(166), hyperparameters={name: value})
        assert getattr(config.hyperparameters, name) == value
        assert name not in why


@pytest.mark.parametrize("name", recipes())
def test_what_a_recipe_says_stands(name: str) -> None:
    config, _, _ = planned(card(80, "flash_attn"), spread(185), recipe=name)
    said = recipes()[name].values["hyperparameters"]
    assert {field: getattr(config.hyperparameters, field) for field in said} == said


def test_one_given_size_decides_the_other() -> None:
    """The accumulation makes about the usual rows of a given micro-batch; a given accumulation keeps its meaning."""
    hyper = planned(CPU, spread(6300), hyperparameters={"per_device_train_batch_size": 8})[0].hyperparameters
    assert (hyper.micro_batch, hyper.accumulation) == (8, 2)
    hyper = planned(card(80), spread(166), hyperparameters={"gradient_accumulation_steps": 8})[0].hyperparameters
    assert (hyper.micro_batch, hyper.accumulation) == (4, 8)
    hyper = planned(card(80), spread(166), hyperparameters={"per_device_train_batch_size": 64})[0].hyperparameters
    assert (hyper.micro_batch, hyper.accumulation) == (64, 1)


def test_a_step_keeps_its_rows_whatever_memory_allows() -> None:
    """The same job on a smaller card must learn the same, more slowly."""
    seen = []
    for gib in (80, 32, 24, 22):
        config, _, _ = planned(card(gib), spread(6300, 1000, 2000), EIGHT_B, method="lora")
        hyper = config.hyperparameters
        seen.append((hyper.micro_batch, bool(hyper.gradient_checkpointing)))
        assert config.rows_per_step == 16
        memory = FreeMemory(card(gib), card(gib).gpus[0], EIGHT_B, 2000)
        assert memory.needed(config).upper_bytes <= gib * GIB * (1 - RESERVE)
    assert len(set(seen)) > 2, seen
    assert seen[-1] == (min(size for size, _ in seen), True)


def test_recomputation_only_where_it_is_needed() -> None:
    """It repeats every forward pass."""
    assert planned(card(24), spread(900))[0].hyperparameters.gradient_checkpointing is False
    tight = planned(card(22), spread(900, 1000, 2000), EIGHT_B, method="lora")[0].hyperparameters
    assert tight.gradient_checkpointing is True
    # A CPU needs no large micro-batches, so it makes smaller ones instead.
    short = Hardware(memory_available_bytes=int(5.5 * GIB), cpu_features=["avx512_bf16"])
    config = planned(short, spread(900))[0]
    hyper = config.hyperparameters
    assert (hyper.micro_batch < 4, hyper.gradient_checkpointing, config.rows_per_step) == (True, False, 16)


def test_rows_without_padding_are_not_grouped() -> None:
    """Sorting them would only mix them less."""
    assert planned(CPU, {200: 900})[0].hyperparameters.group_by_length is False
    assert planned(CPU, spread(900, 190, 210))[0].hyperparameters.group_by_length is False


def test_larger_micro_batches_do_not_add_padding() -> None:
    """A caller who wants rows in random order would pay for a larger micro-batch with padding."""
    lengths = {50: 5800, 2000: 500}
    random = planned(card(80), lengths, hyperparameters={"group_by_length": False})[0]
    grouped = planned(card(80), lengths)[0]
    assert random.hyperparameters.micro_batch < grouped.hyperparameters.micro_batch == 16
    assert random.rows_per_step == grouped.rows_per_step == 16


def test_packing_where_rows_stay_isolated_without_cost() -> None:
    """A step of packs has about as many rows as one of rows, so the job learns the same in as many steps."""
    flash = card(80, "flash_attn")
    config, steps, why = planned(flash, spread(6300))
    hyper = config.hyperparameters
    assert hyper.packing and hyper.group_by_length is False
    assert config.rows_per_step == 2
    assert abs(steps / planned(flash, spread(6300), hyperparameters={"packing": False})[1] - 1) < 0.2
    assert "rows on average" in why["packing"]


@pytest.mark.parametrize(
    ("hardware", "lengths", "hyper", "reason"),
    [
        (CPU, spread(6300), {}, "CPU"),
        (card(80), spread(6300), {}, "sdpa"),
        (card(80, "flash_attn"), spread(6300), {"precision": "fp32"}, "sdpa"),
        (card(80, "flash_attn"), spread(6300, 600, 2048), {}, "the rows are long"),
        (card(80, "flash_attn"), spread(6300, 10, 60), {}, "the rows are short"),
        (card(80, "flash_attn"), {200: 6300}, {}, "only 0% padding"),
        (card(80, "flash_attn"), spread(6300), {"group_by_length": True}, "group_by_length"),
        (card(80, "flash_attn"), spread(6300), {"per_device_train_batch_size": 4}, "number of rows per step"),
    ],
)  # fmt: skip
def test_no_packing_otherwise(hardware: Hardware, lengths: dict[int, int], hyper: dict[str, Any], reason: str) -> None:
    config, _, why = planned(hardware, lengths, hyperparameters=hyper)
    assert config.hyperparameters.packing is False
    assert reason in why["packing"]


def test_a_curriculum_counts_the_steps_of_all_phases() -> None:
    """Each phase alone would be short, and would be given smaller steps than the whole needs."""
    phases = [{"training_data": [{"dataset": name}], "num_epochs": epochs} for name, epochs in (("a", 5.0), ("b", 3.0))]
    config, steps, _ = planned(CPU, spread(300), phases=phases)
    assert config.rows_per_step == 16
    assert steps == 150 >= ENOUGH_STEPS
    assert config.hyperparameters.eval_steps == config.hyperparameters.save_steps == 15


def test_given_steps_keep_the_usual_rows() -> None:
    """With max_steps, fewer rows a step would only train on less."""
    config, steps, _ = planned(CPU, spread(166), hyperparameters={"max_steps": 40})
    assert (config.rows_per_step, steps) == (16, 40)


def test_costly_evaluations_are_fewer() -> None:
    """Held-out rows twice the training's would make evaluation longer than training."""
    config, steps, why = planned(CPU, spread(900), held_out=2.0)
    assert steps // (config.hyperparameters.eval_steps or 1) == 3
    assert "of the operations of training" in why["eval_steps"]
    assert steps // (config.hyperparameters.save_steps or 1) >= 9


def test_a_long_job_is_saved_more_often_than_it_is_evaluated() -> None:
    """A tenth of a job of a day is hours."""
    config, steps, _ = planned(card(80), spread(90_000), held_out=0.11)
    hyper = config.hyperparameters
    assert hyper.save_steps == 200
    assert hyper.eval_steps is not None and hyper.eval_steps % 200 == 0
    assert steps // hyper.eval_steps >= 8


def test_a_short_job_with_rare_checkpoints_is_evaluated_as_often_as_any_other() -> None:
    """With the recipe's 500 steps between checkpoints, it would be evaluated once, at its end."""
    config, steps, reasons = planned(CPU, spread(166), hyperparameters={"save_steps": 500})
    assert (config.hyperparameters.save_steps, config.hyperparameters.eval_steps) == (500, -(-steps // 10))
    assert reasons["eval_steps"] == f"a tenth of {steps} steps"


def test_nothing_held_out_means_no_evaluation() -> None:
    config, steps, why = planned(CPU, spread(166), held_out=0.0)
    assert "nothing is evaluated" in why["eval_steps"]
    assert config.hyperparameters.save_steps == -(-steps // 10)


@pytest.mark.parametrize("scheduler", ["constant", "cosine"])
def test_no_warm_up_that_only_costs_a_step(scheduler: str) -> None:
    """The first step of a warm-up has learning rate 0."""
    count = 900 if scheduler == "constant" else 18
    config, _, _ = planned(CPU, spread(count), hyperparameters={"lr_scheduler_type": scheduler})
    assert config.hyperparameters.warmup_steps == 0
