"""Suggestions come from the job's own figures, and only where they improve the job."""

from collections.abc import Mapping
from typing import Any

import pytest

from engine.config.job import JobConfig, job_config
from engine.data.statistics import Statistics
from engine.estimate.advice import Improvement, JobFacts, improvements, padding_share
from engine.estimate.disk import estimate_disk, num_saved
from engine.estimate.known_architectures import known
from engine.estimate.machine import Machine, gpu_machine
from engine.estimate.memory import GIB, Setup
from finetuneflow.v1.hardware_pb2 import Hardware

CARD = gpu_machine("RTX 4090", 23 * GIB, total=24 * GIB)
CPU = Machine.of(
    Hardware(cpu_model="CPU", cpu_cores=4, memory_available_bytes=16 * GIB, packages={"bitsandbytes": "1"})
)
LIKE = {400: 3000, 410: 2000}
"""Lengths of rows whose batches have almost no padding."""


def config(**spec: Any) -> JobConfig:
    hyper = {"precision": "bf16", "optim": "adamw_torch", "gradient_checkpointing": False, "max_length": 512}
    hyper |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, **spec.pop("hyperparameters", {})}
    data = {} if "phases" in spec else {"training_data": [{"dataset": "d"}]}
    values = {"base_model": "m", **data, "recipe": "finetuneflow", "method": "lora", "hyperparameters": hyper}
    return job_config(values | spec)


def counted(lengths: Mapping[int, int], **more: int) -> Statistics:
    found = Statistics()
    for length, rows in lengths.items():
        for _ in range(rows):
            found.count(length, length // 2, False)
    for name, value in more.items():
        setattr(found, name, value)
    return found


def better(
    *, machine: Machine = CARD, model: str = "llama-3.2-1b", lengths: Mapping[int, int] = LIKE, held: int = 500,
    steps: int = 900, packed: int = 0, distinct: int = 0, cut: int = 0, seconds: float | None = None, **spec: Any,
) -> dict[str, Improvement]:  # fmt: skip
    """Suggestions by the last part of the field's name."""
    evaluation = counted({400: held}) if held else Statistics()
    train = counted(lengths, num_truncated=cut)
    architecture = known(model)
    passes = 16 * steps / max(train.num_examples, 1)
    facts = JobFacts(
        config=config(**spec),
        architecture=architecture,
        machine=machine,
        train=train,
        evaluation=evaluation,
        num_packed=packed or train.num_examples,
        num_distinct=distinct or train.num_examples + held,
        total_steps=steps,
        passes=passes,
        seconds=seconds,
    )
    return {found.field.rpartition(".")[2]: found for found in improvements(facts)}


def test_a_sound_job_gets_no_suggestions() -> None:
    """A user stops reading suggestions that every job gets."""
    assert better() == {}
    assert better(lengths={}) == {}


def test_no_other_scale_is_suggested_for_an_adapter_that_is_trained_further() -> None:
    """The job would be refused with it."""
    lora = {"r": 64, "lora_alpha": 8}
    assert "lora_alpha" not in better(lora=lora, start_from="ft:ftjob_1@5")
    assert "lora_alpha" in better(lora=lora, start_from="ft:ftjob_1@5", start_mode="new")


SUSPICIOUS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"hyperparameters": {"learning_rate": 0.02}}, "learning_rate", "0.0002", "20 times the highest"),
    ({"method": "full", "model": "smollm2-135m"}, "learning_rate", "2e-05", "2.0 times the highest"),
    ({"hyperparameters": {"learning_rate": 1e-6}}, "learning_rate", "0.0002", "900 steps change the weights little"),
    ({"method": "full", "model": "smollm2-135m", "base_model": "inl-small", "hyperparameters": {"learning_rate": 0.02}},
     "learning_rate", "0.0003", "usually used for training from random weights (2e-05 to 0.003)"),
    ({"hyperparameters": {"warmup_steps": 900}}, "warmup_steps", "45", "899 of 900 steps and leaves 1 step after"),
    ({"hyperparameters": {"warmup_ratio": 0.5}}, "warmup_ratio", "0.05", "450 of 900 steps"),
    ({"lengths": {400: 100}, "steps": 19}, "gradient_accumulation_steps", "1", "100 rows make 19 steps of 16 rows"),
    ({"lengths": {400: 100}, "steps": 19}, "gradient_accumulation_steps", "1",
     "With gradient_accumulation_steps = 1 there are 39 steps."),
    ({"lengths": {400: 9}, "held": 0, "steps": 3, "hyperparameters": {"per_device_train_batch_size": 64,
      "gradient_accumulation_steps": 64}}, "per_device_train_batch_size", "1",
     "9 rows make 3 steps of 9 rows, which is few. With per_device_train_batch_size = 1 and "
     "gradient_accumulation_steps = 1 there are 27 steps."),
    ({"lora": {"r": 1024, "lora_alpha": 32, "target_modules": ["k_proj"]}}, "r", "16",
     "the width of every targeted layer (at most 512)"),
    ({"lengths": {400: 100}, "held": 0, "hyperparameters": {"num_epochs": 40}}, "num_epochs", "3", "on 144 times"),
    ({"lora": {"r": 64, "lora_alpha": 8}}, "lora_alpha", "128", "lora_alpha / r = 0.125"),
    ({"lora": {"r": 64, "lora_alpha": 128, "use_rslora": True}}, "lora_alpha", "32", "lora_alpha / √r = 16"),
    ({"held": 0, "holdout_fraction": 0.0}, "holdout_fraction", "0.1", "None of the 5,000 rows"),
    ({"lengths": {400: 95}, "held": 5, "holdout_fraction": 0.05}, "holdout_fraction", "0.3", "one row is 20%"),
    ({"hyperparameters": {"eval_steps": 5000}}, "eval_steps", "180", "evaluated only after the last"),
    ({"hyperparameters": {"eval_steps": 5}}, "eval_steps", "138", "180 evaluations of 500 rows"),
    ({"held": 0, "seconds": 3600.0, "hyperparameters": {"save_steps": 5000}}, "save_steps", "180", "60 minutes"),
    ({"method": "qlora"}, "method", "lora", "of 23.0 GiB free"),
    ({"method": "full", "model": "smollm2-135m", "lengths": {400: 60}}, "method", "lora", "134,515,008 weights"),
    ({"hyperparameters": {"precision": "fp16"}}, "precision", "bf16", "RTX 4090 supports bf16"),
    ({"hyperparameters": {"gradient_checkpointing": True}}, "gradient_checkpointing", "false", "fewer operations"),
    ({"hyperparameters": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16}},
     "per_device_train_batch_size", "8", "gradient_accumulation_steps = 2"),
    ({"cut": 900, "model": "smollm2-135m"}, "max_length", "1024", "900 of 5,000 rows lose their end"),
    ({"cut": 900, "model": "smollm2-135m", "hyperparameters": {"truncation": "keep_end"}},
     "max_length", "1024", "900 of 5,000 rows lose their beginning"),
    ({"hyperparameters": {"max_length": 8192}}, "max_length", "512", "The longest row has 410 tokens"),
    ({"lengths": {50: 2500, 500: 2500}}, "group_by_length", "true", "50 to 500 tokens"),
    ({"lengths": {50: 2500, 500: 2500}, "packed": 2700, "steps": 900}, "packing", "true", "2,700 packs of 512"),
    ({"machine": CPU, "model": "smollm2-135m", "hyperparameters": {"packing": True, "precision": "fp32"}},
     "packing", "false", "does not speed up training on a CPU"),
]  # fmt: skip


@pytest.mark.parametrize(("job", "field", "suggested", "why"), SUSPICIOUS)
def test_each_suggestion_names_value_and_figures(job: dict[str, Any], field: str, suggested: str, why: str) -> None:
    found = better(**job)
    assert field in found, found
    assert found[field].suggested == suggested
    assert why in found[field].reason


def test_random_weights_are_trained_with_higher_rates() -> None:
    """At the rates of fine-tuning, a training from scratch learns nothing."""
    given = {"method": "full", "model": "smollm2-135m", "hyperparameters": {"learning_rate": 1e-3}}
    assert "learning_rate" in better(**given)
    assert "learning_rate" not in better(**given, base_model="random:smollm2-135m")


def test_suggestions_without_effect_are_omitted() -> None:
    """One row makes one step per epoch, however small the batches. No alpha helps a rank above the layers' width."""
    single = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    found = better(lengths={400: 1}, held=0, steps=3, hyperparameters=single)
    assert not {"gradient_accumulation_steps", "per_device_train_batch_size"} & set(found)
    assert "lora_alpha" not in better(lora={"r": 1024, "lora_alpha": 32, "target_modules": ["k_proj"]})


def test_quantisation_settings_are_suggested_for_qlora_only() -> None:
    """Each setting of the quantisation has a cost that the suggestion states."""
    coarse = {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False, "bnb_4bit_compute_dtype": "fp32"}
    found = better(model="llama-3.1-8b", method="qlora", quantization=coarse)
    assert {"bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype"} <= set(found)
    assert "Saves 0.3 GiB" in found["bnb_4bit_use_double_quant"].reason
    assert not {"bnb_4bit_quant_type"} & set(better(quantization=coarse))


def test_memory_shortage_suggests_the_cheapest_reduction() -> None:
    """Gradient checkpointing costs only time, so it comes before quantised weights."""
    long: dict[str, Any] = {"hyperparameters": {"max_length": 2048}, "lengths": {2000: 600}}
    assert better(**long)["gradient_checkpointing"].suggested == "true"
    card, recomputed = gpu_machine("RTX 4090", 18 * GIB), {"gradient_checkpointing": True}
    found = better(model="llama-3.1-8b", machine=card, hyperparameters=recomputed)
    assert found["method"].suggested == "qlora"


def test_padding_share_is_that_of_random_batches() -> None:
    assert padding_share({100: 7}, 8) == 0
    assert padding_share({1: 1, 3: 1}, 1) == 0
    # Two rows can be 1 and 1, 1 and 3 (twice), or 3 and 3: the longest has 2.5 tokens on average, a row 2.
    assert padding_share({1: 1, 3: 1}, 2) == pytest.approx(1 - 2 / 2.5)


def test_disk_counts_checkpoints_that_exist_at_once() -> None:
    """Retention keeps at least three; with a remote store the node holds only those being uploaded."""
    job = config(hyperparameters={"save_steps": 10, "eval_steps": 15, "save_total_limit": 5})
    assert [num_saved(job, steps) for steps in (1, 10, 30, 31)] == [1, 1, 4, 5]
    architecture = known("llama-3.1-8b")
    setup = Setup.of(job, on_gpu=True, length=400)
    sizes: dict[str, Any] = {"num_tokens": 0, "free_bytes": int(4.8 * GIB)}

    def disk(steps: int, *, here: bool, **more: Any) -> Any:
        return estimate_disk(architecture, setup, job, total_steps=steps, holds_artifacts=here, **sizes, **more)

    assert (disk(900, here=True).num_checkpoints, disk(900, here=False).num_checkpoints) == (8, 2)
    assert disk(1, here=True).num_checkpoints == 2
    assert disk(900, here=False).verdict == "comfortable"
    assert disk(900, here=True).verdict == "tight"
    assert disk(900, here=True, download_bytes=GIB).verdict == "impossible"


def test_disk_counts_the_merged_model_while_it_is_made() -> None:
    """A merged model is a hundred times as large as its adapter; the disk would be full in the last stage."""
    job = config(export={"formats": ["adapter", "merged"]}, hyperparameters={"save_steps": 10, "eval_steps": 10})
    architecture = known("smollm2-135m")
    setup = Setup.of(job, on_gpu=False, length=400)
    sizes: dict[str, Any] = {"num_tokens": 0, "free_bytes": 100 * GIB, "total_steps": 10}

    def needed(merged_bytes: int, *, here: bool) -> int:
        found = estimate_disk(architecture, setup, job, holds_artifacts=here, merged_bytes=merged_bytes, **sizes)
        return found.needed_bytes

    assert needed(GIB, here=False) - needed(0, here=False) == 3 * GIB
    assert needed(GIB, here=True) - needed(0, here=True) == 4 * GIB


def test_a_row_in_two_phases_is_one_row() -> None:
    """A curriculum that trains on the same 60 rows twice has 60 rows to hold out from, not 120, and half the tokens."""
    phase = {"training_data": [{"dataset": "d"}], "num_epochs": 1}
    found = better(
        lengths={400: 120}, held=0, distinct=60, method="full", model="smollm2-135m", phases=[phase, phase],
        holdout_fraction=0,
    )  # fmt: skip
    assert "None of the 60 rows is held out" in found["holdout_fraction"].reason
    assert found["method"].reason.startswith("About 12,000 trained tokens")
    cut = better(lengths={512: 120}, cut=60, held=0, distinct=60, model="smollm2-135m", phases=[phase, phase])[
        "max_length"
    ].reason
    assert cut.startswith("50% of the rows lose their end")
