"""TRL: arguments of `SFTConfig`, `ModelConfig` and `ScriptArguments`, as in the files of `trl sft --config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetuneflow.cli.foreign.program import NO_SETTING, SHARED, Program, fixed, is_file, listed, names_in
from finetuneflow.setting_names import (
    NoCounterpart,
    Outcome,
    Rule,
    evaluation_strategy,
    is_true,
    rename,
    table,
    without,
)


def _losses(given: Mapping[str, Any]) -> Outcome:
    """Translates which tokens the loss is on."""
    if is_true(given.get("assistant_only_loss")) or is_true(given.get("completion_only_loss")):
        return Outcome({"hyperparameters.loss_on": "response"})
    return Outcome({"hyperparameters.loss_on": "all"})


def _adapters(given: Mapping[str, Any]) -> Outcome:
    """Translates whether adapters are trained, and on which weights."""
    bits = [bits for name, bits in (("load_in_4bit", 4), ("load_in_8bit", 8)) if is_true(given.get(name))]
    if len(bits) == 2:
        raise NoCounterpart("load_in_4bit and load_in_8bit exclude each other; set one of them")
    if not is_true(given.get("use_peft")):
        if bits:
            raise NoCounterpart("quantized weights are trained with adapters only: set use_peft")
        return Outcome({"method": "full"})
    sets = {"method": "qlora", "quantization.bits": bits[0]} if bits else {"method": "lora"}
    targets = names_in(given.get("lora_target_modules"))
    if targets is None:
        return Outcome(sets, lost={"": _TARGETS})
    return Outcome(sets | {"lora.target_modules": targets})


def _evaluation(given: Mapping[str, Any]) -> Outcome:
    outcome = evaluation_strategy(given)
    lost = {} if outcome.sets else {"": "the rows to evaluate on are not in this file: `ftf train --eval FILE`"}
    return Outcome(outcome.sets, outcome.note, lost)


def _dataset(given: Mapping[str, Any]) -> Outcome:
    (name,) = given.values()
    if isinstance(name, str) and is_file(name):
        return Outcome({"training_data": [{"dataset": name}]})
    lost = {"": "of several files those named `train` are read; otherwise name a file or folder: hf://owner/name/path"}
    if not isinstance(name, str) or name.count("/") != 1:
        raise NoCounterpart("not the id of a dataset on the hub; name the files in training_data")
    return Outcome({"training_data": [f"hf://{name}"]}, lost=lost)


def _model_arguments(given: Mapping[str, Any]) -> Outcome:
    (value,) = given.values()
    if not isinstance(value, Mapping):
        raise NoCounterpart("must be a table")
    sets = (
        {"hyperparameters.attn_implementation": value["attn_implementation"]} if "attn_implementation" in value else {}
    )
    lost = {f".{key}": _WEIGHTS for key in value if key != "attn_implementation"}
    return Outcome(sets, lost=lost)


_PREFERENCES = (
    "beta",
    "rpo_alpha",
    "reward_model_path",
    "reward_funcs",
    "reward_weights",
    "ref_model_init_kwargs",
    "desirable_weight",
    "undesirable_weight",
    "num_generations",
    "max_completion_length",
)
"""Names that only files for preference methods and reinforcement learning have."""
_TARGETS = (
    "without lora_target_modules, peft adapts a few layers by architecture, such as q_proj and v_proj; here all linear "
    "layers get adapters: set lora.target_modules"
)
_WEIGHTS = "how weights are loaded follows from method and hyperparameters.precision"
_TEXT = "columns are mapped with each source: training_data = [{ dataset = …, mapping = { text = … } }]"

TRL = Program(
    "trl",
    "TRL",
    frozenset({"dataset_text_field", "assistant_only_loss", "completion_only_loss", "use_peft", "dataset_name"}),
    table(
        SHARED.values(),
        Rule(("assistant_only_loss", "completion_only_loss"), _losses),
        Rule(("use_peft", "load_in_4bit", "load_in_8bit", "lora_target_modules"), _adapters, decides="method"),
        Rule(("dataset_name",), _dataset),
        Rule(("eval_strategy",), _evaluation),
        Rule(("model_init_kwargs",), _model_arguments),
        listed("lora.modules_to_save", "lora_modules_to_save"),
        rename("quantization.bnb_4bit_use_double_quant", "use_bnb_nested_quant"),
        rename("hyperparameters.truncation", "truncation_mode"),
        fixed(["CAUSAL_LM"], "every model is a causal language model", "use CAUSAL_LM", "lora_task_type"),
        fixed(["text"], "the column's name here too", _TEXT, "dataset_text_field"),
        fixed(["nll"], "the loss here too", "only the cross-entropy (nll) is available", "loss_type"),
        without("only supervised fine-tuning and training on text are available", *_PREFERENCES),
        fixed(
            ["bfd"], "the packing here too", "packing is best-fit decreasing, with rows kept apart", "packing_strategy"
        ),
        fixed([False], "held-out rows are never packed", "held-out rows are never packed", "eval_packing"),
        fixed(
            ["main"],
            "the model's main branch",
            "name the revision in base_model: owner/name@revision",
            "model_revision",
        ),
        fixed(["train"], "all rows of the file", "name the file of the split in training_data", "dataset_train_split"),
        without("name the file of the configuration in training_data", "dataset_config", "dataset_test_split"),
        without(_WEIGHTS, "dtype", "torch_dtype", "bnb_4bit_quant_storage", off=["auto"]),
        without("tokens are never added; padding is masked by length", "pad_token", "eos_token"),
        without("set chat_template to the text of a template", "chat_template_path"),
        without(NO_SETTING, "lora_target_parameters", "dataset_kwargs", "router_aux_loss_coef"),
    ),
    {
        "method": "full",
        "holdout_fraction": 0.0,
        "hyperparameters.packing": False,
        "hyperparameters.group_by_length": False,
        "hyperparameters.num_epochs": 3,
        "hyperparameters.learning_rate": 2e-5,
        "hyperparameters.lr_scheduler_type": "linear",
        "hyperparameters.per_device_train_batch_size": 8,
        "hyperparameters.per_device_eval_batch_size": 8,
        "hyperparameters.gradient_accumulation_steps": 1,
        "hyperparameters.max_length": 1024,
        "hyperparameters.warmup_ratio": 0.0,
        "hyperparameters.weight_decay": 0.0,
        "hyperparameters.optim": "adamw_torch_fused",
        "hyperparameters.save_steps": 500,
        "hyperparameters.early_stopping_patience": 0,
        "hyperparameters.loss_on": "all",
        "quantization.bnb_4bit_use_double_quant": False,
    },
    objective=frozenset({"loss_type", *_PREFERENCES}),
    nulls={"max_length": "rows are limited here; set max_length to the tokens of the longest one"},
)
