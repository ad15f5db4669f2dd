"""Names and forms of settings from older configurations, as a job's table takes them."""

import contextlib
from collections.abc import Mapping
from typing import Any

import pytest

from engine.config.job import JobConfig, job_config
from engine.config.spec_proto import spec_to_dict
from finetuneflow import InvalidArgument
from finetuneflow.setting_names import JOB_RULES, Translation
from finetuneflow.spec import draft_spec
from finetuneflow.v1 import fine_tuning_job_spec_pb2 as pb

JOB = {"base_model": "m", "training_data": "ds_1"}


def config(values: Mapping[str, Any]) -> JobConfig:
    return job_config(spec_to_dict(draft_spec(values).spec))


def lines(values: Mapping[str, Any]) -> list[str]:
    return [str(each) for each in draft_spec({**JOB, **values}).translations]


def refusals(values: Mapping[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        draft_spec({**JOB, **values})
    return dict(caught.value.violations)


def test_flat_defaults_of_an_older_configuration_are_a_job() -> None:
    """A dict that trains elsewhere would otherwise have to be rewritten key by key."""
    found = config(
        {
            "base_model_id": "m",
            "training_data": "ds_1",
            "method": "qlora",
            "num_epochs": 3,
            "learning_rate": 2e-4,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "max_seq_length": 1024,
            "warmup_ratio": 0.03,
            "weight_decay": 0.01,
            "lr_scheduler_type": "cosine",
            "fp16": False,
            "bf16": True,
            "gradient_checkpointing": True,
            "optim": "paged_adamw_8bit",
            "logging_steps": 10,
            "eval_steps": 100,
            "save_steps": 200,
            "save_total_limit": 3,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
            "early_stopping_patience": 3,
            "r": 8,
            "lora_alpha": 16,
            "lora_dropout": 0.1,
            "bias": "none",
            "task_type": "CAUSAL_LM",
            "target_modules": "auto",
            "load_in_4bit": True,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
        }
    )
    hyper = found.hyperparameters
    assert (found.method, found.quantization.bits, found.quantization.bnb_4bit_compute_dtype) == ("qlora", 4, "bf16")
    assert (hyper.max_length, hyper.precision, hyper.gradient_checkpointing) == (1024, "bf16", True)
    assert (hyper.per_device_train_batch_size, hyper.optim, hyper.save_steps) == (2, "paged_adamw_8bit", 200)
    assert (found.lora.r, found.lora.lora_alpha, found.lora.lora_dropout, found.lora.target_modules) == (8, 16, 0.1, [])


def test_nested_partial_configuration_keeps_the_defaults_of_the_rest() -> None:
    found = config(
        {
            "model_name": "org/model",
            "training_data": "ds_1",
            "num_train_epochs": 5,
            "learning_rate": 1e-4,
            "lora": {"r": 32, "lora_alpha": 64},
            "quantization": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float16"},
            "output_dir": "models/mine",
        }
    )
    assert (found.base_model, found.method, found.hyperparameters.num_epochs) == ("org/model", "qlora", 5)
    assert (found.lora.r, found.lora.lora_dropout, found.quantization.bnb_4bit_compute_dtype) == (32, 0.05, "fp16")


def test_short_names_of_a_recipe_are_accepted() -> None:
    given = {"epochs": 4, "batch_size": 4, "optimizer": "paged_adamw_8bit", "scheduler": "cosine", "warmup_steps": 200}
    found = config({**JOB, **given, "lora": {"r": 32, "alpha": 64}})
    hyper = found.hyperparameters
    assert (hyper.num_epochs, hyper.per_device_train_batch_size, hyper.warmup_steps) == (4, 4, 200)
    assert (hyper.optim, hyper.lr_scheduler_type, found.lora.lora_alpha) == ("paged_adamw_8bit", "cosine", 64)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"max_seq_length": 64}, "max_seq_length = 64 → hyperparameters.max_length = 64"),
        (
            {"hyperparameters": {"gradient_checkpointing": "unsloth"}},
            'hyperparameters.gradient_checkpointing = "unsloth" → hyperparameters.gradient_checkpointing = true '
            "(activations are recomputed and not moved to main memory as Unsloth does; the results are the same)",
        ),
        (
            {"use_gradient_checkpointing": False},
            "use_gradient_checkpointing = false → hyperparameters.gradient_checkpointing = false",
        ),
        ({"fp16": True, "bf16": False}, 'bf16 = false, fp16 = true → hyperparameters.precision = "fp16"'),
        ({"fp16": False, "bf16": False}, 'bf16 = false, fp16 = false → hyperparameters.precision = "fp32"'),
        ({"load_in_8bit": True}, 'load_in_8bit = true → method = "qlora", quantization.bits = 8'),
        ({"load_in_4bit": False}, 'load_in_4bit = false → method = "lora" (no quantization)'),
        (
            {"warmup_steps": 0.1},
            "warmup_steps = 0.1 → hyperparameters.warmup_ratio = 0.1 (below 1, so a fraction of all steps)",
        ),
        ({"max_steps": -1}, "max_steps = -1: unset; num_epochs applies"),
        (
            {"evaluation_strategy": "no"},
            'evaluation_strategy = "no" → holdout_fraction = 0.0 '
            "(without held-out rows nothing is evaluated while training)",
        ),
        (
            {"load_best_model_at_end": True},
            "load_best_model_at_end = true: the best checkpoint by eval_loss is always the result",
        ),
        ({"learning_rate": 1e-4}, "learning_rate = 0.0001 → hyperparameters.learning_rate = 0.0001"),
    ],
)  # fmt: skip
def test_each_translation_is_one_line(given: Mapping[str, Any], line: str) -> None:
    assert lines(given) == [line]


def test_names_of_the_spec_need_no_translation() -> None:
    assert lines({"method": "lora", "hyperparameters": {"max_length": 64, "warmup_steps": 3}, "lora": {"r": 4}}) == []


@pytest.mark.parametrize(
    ("given", "field", "reason"),
    [
        ({"max_seq_length": 6, "hyperparameters": {"max_length": 8}}, "max_seq_length", "another name of `max_length`"),
        ({"learning_rate": 1e-4, "hyperparameters": {"learning_rate": 2e-4}}, "learning_rate", "is set at"),
        ({"num_train_epochs": 1, "epochs": 2}, "epochs", "another name of `num_epochs`"),
        ({"load_in_4bit": True, "quantization": {"bits": 8}}, "load_in_4bit", "but it is 8"),
        ({"load_in_4bit": True, "method": "lora"}, "load_in_4bit", "set method to qlora"),
        ({"load_in_4bit": False, "method": "qlora"}, "load_in_4bit", "set method to lora"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_4bit", "exclude each other"),
        ({"bf16": True, "fp16": True}, "bf16", "exclude each other"),
        ({"fp16": False}, "fp16", "set hyperparameters.precision"),
        ({"load_best_model_at_end": False}, "load_best_model_at_end", "remove it"),
        ({"metric_for_best_model": "accuracy"}, "metric_for_best_model", "eval_loss"),
        ({"eval_strategy": "epoch"}, "eval_strategy", "eval_steps"),
        ({"report_to": "wandb"}, "report_to", "wandb = {secret"),
        ({"task_type": "SEQ_CLS"}, "task_type", "CAUSAL_LM"),
        ({"trust_remote_code": True}, "trust_remote_code", "never run"),
        ({"hf_token": "hf_abc"}, "hf_token", "secrets.hub_token"),
        ({"max_seq_lenght": 64}, "max_seq_lenght", "did you mean `max_seq_length`"),
        ({"lora": {"lora_alpah": 1}}, "lora.lora_alpah", "did you mean `lora_alpha`"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(given: Mapping[str, Any], field: str, reason: str) -> None:
    """Guessing would train something else than the file says."""
    found = refusals(given)
    assert reason in found[f"spec.{field}"]
    assert "hf_abc" not in str(found)


def test_every_name_leads_to_a_field_of_the_spec() -> None:
    """A mistake in the table would only show for the one user of that name."""
    for rule in JOB_RULES.values():
        section, _, name = rule.renames.rpartition(".")
        message: Any = pb.FineTuningJobSpec.DESCRIPTOR
        message = message.fields_by_name[section].message_type if section else message
        assert not name or name in message.fields_by_name, rule


def test_a_translation_has_its_values_for_programs() -> None:
    (found,) = draft_spec({**JOB, "bf16": True}).translations
    assert isinstance(found, Translation)
    assert found.to_dict() == {"given": {"bf16": True}, "sets": {"hyperparameters.precision": "bf16"}, "note": ""}


@pytest.mark.parametrize("place", ["", "hyperparameters", "lora", "quantization", "unknown"])
def test_odd_values_are_refused_or_taken(place: str) -> None:
    odd: list[Any] = [True, -1, 1.5, 10**400, "", "x", "true", [], [1], [{}], {}, {"": {"seed": 1}}, {"r": {"r": 1}}]
    for key in [*JOB_RULES, "", "lora", "unknown"]:
        for value in odd:
            with contextlib.suppress(InvalidArgument):
                draft_spec({**JOB, place: {key: value}} if place else {**JOB, key: value})
