"""Axolotl: the files of `axolotl train`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from finetuneflow.cli.foreign.program import (
    NO_SETTING,
    SHARED,
    Program,
    any_value,
    chosen,
    fixed,
    held_out,
    is_file,
    listed,
)
from finetuneflow.setting_names import NoCounterpart, Outcome, Rule, is_false, is_true, rename, table, without

_FORMATS = {
    "alpaca": ("instruction", "rows are written with the model's chat template, not with Alpaca's text"),
    "chat_template": ("chat", ""),
    "sharegpt": ("chat", ""),
    "completion": ("text", ""),
}
"""Axolotl's type of rows → our format, and what differs."""
_COLUMNS = {"field_messages": "messages", "field": "text", "field_instruction": "instruction", "field_output": "output"}
_COLUMNS |= {"field_input": "input", "field_system": "system", "field_tools": "tools"}
_SPLIT = "files or folders are named instead of splits: hf://owner/name/path; without one, those named `train` are read"


def _method(given: Mapping[str, Any]) -> Outcome:
    """Translates the adapter and the quantization of the base weights."""
    adapter = given.get("adapter") or ""
    bits = [bits for name, bits in (("load_in_4bit", 4), ("load_in_8bit", 8)) if is_true(given.get(name))]
    if adapter not in ("", "lora", "qlora"):
        raise NoCounterpart(f"adapter {adapter!r} is not available; use lora or qlora")
    if len(bits) == 2 or (bits and not adapter) or (adapter == "qlora" and bits != [4]):
        raise NoCounterpart("adapter qlora needs load_in_4bit, lora takes one of load_in_4bit and load_in_8bit")
    if not adapter:
        return Outcome({"method": "full"})
    return Outcome({"method": "qlora", "quantization.bits": bits[0]} if bits else {"method": "lora"})


def _targets(given: Mapping[str, Any]) -> Outcome:
    named = given.get("lora_target_modules")
    if is_true(given.get("lora_target_linear")):
        if named:
            raise NoCounterpart("lora_target_linear adds every linear layer to lora_target_modules; set one of the two")
        return Outcome({"lora.target_modules": ["all-linear"]})
    if isinstance(named, str):
        return Outcome({"lora.target_modules_pattern": named})
    return Outcome({"lora.target_modules": named} if named else {}, "" if named else "off here too")


def _attention(given: Mapping[str, Any]) -> Outcome:
    """Translates the switches of the implementation of attention, of which one may be on."""
    names = {"flash_attention": "flash_attention_2", "sdp_attention": "sdpa", "eager_attention": "eager"}
    on = [name for name, value in given.items() if not is_false(value)]
    unknown = [name for name in on if name not in names]
    if unknown or len(on) > 1:
        raise NoCounterpart("set hyperparameters.attn_implementation to eager, sdpa or flash_attention_2")
    if not on:
        return Outcome(note="the implementation is chosen by the hardware")
    return Outcome({"hyperparameters.attn_implementation": names[on[0]]})


def _sources(path: str, given: Mapping[str, Any]) -> Outcome:
    (value,) = given.values()
    if not isinstance(value, list):
        raise NoCounterpart("must be a list of datasets")
    sources, lost = [], {}
    for index, entry in enumerate(value):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("path"), str):
            lost[f"[{index}]"] = "must have a path"
            continue
        source, missing = _source(entry)
        sources += source
        lost |= {f"[{index}].{part}": why for part, why in missing}
    return Outcome({path: sources} if sources else {}, lost=lost)


def _source(entry: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Iterable[tuple[str, str]]]:
    """Returns the data sources of one dataset, and its parts that no source expresses with the reasons."""
    lost: list[tuple[str, str]] = []
    place, files, revision = entry["path"], entry.get("data_files"), entry.get("revision")
    names = [files] if isinstance(files, str) else files if isinstance(files, list) else []
    if is_file(place) or place.count("/") != 1:
        places = names or [place]
    else:
        hub = f"hf://{place}" + (f"@{revision}" if revision else "")
        places = [f"{hub}/{name}" for name in names] or [hub]
    common: dict[str, Any] = {}
    kind = entry.get("type")
    if isinstance(kind, str) and kind.partition(":")[0].partition(".")[0] in _FORMATS:
        common["format"], differs = _FORMATS[kind.partition(":")[0].partition(".")[0]]
        if differs or "." in kind or ":" in kind:
            lost.append(("type", differs or "the rows are read as " + common["format"]))
    elif kind is not None:
        lost.append(("type", "the format is detected from the columns; a row template can write any other one"))
    mapping = {_COLUMNS[name]: column for name, column in entry.items() if name in _COLUMNS and isinstance(column, str)}
    if mapping:
        common["mapping"] = mapping
    lost += [(name, _part(name, value)) for name, value in entry.items() if _part(name, value) and value is not None]
    return [{"dataset": place, **common} for place in places], lost


def _part(name: str, value: Any) -> str:
    """Returns why a part of a dataset has no counterpart; "" if it has one."""
    if name in ("path", "type", "data_files", "revision", "ds_type", *_COLUMNS):
        return ""
    if name == "split":
        return _SPLIT
    if name == "message_property_mappings" and value in (
        {"role": "role", "content": "content"},
        {"role": "from", "content": "value"},
    ):
        return ""
    if name == "roles_to_train" and value == ["assistant"]:
        return ""
    if name == "train_on_eos" and value == "turn":
        return ""
    return "rows cannot be read that way; a row template (training_data[].template) can write any format"


def _response(given: Mapping[str, Any]) -> Outcome:
    (value,) = given.values()
    return Outcome({"hyperparameters.loss_on": "all" if is_true(value) else "response"})


def _padding(given: Mapping[str, Any]) -> Outcome:
    (value,) = given.values()
    if isinstance(value, Mapping) and set(value) <= {"pad_token"}:
        return Outcome(note="padding is masked by its length, whatever its token")
    raise NoCounterpart("tokens are never added and those of the tokenizer stand")


def _template(given: Mapping[str, Any]) -> Outcome:
    (value,) = given.values()
    if value == "tokenizer_default":
        return Outcome(note="the model's own template is used")
    if value == "jinja":
        return Outcome(note="the template is chat_template_jinja")
    raise NoCounterpart("the model's own template is used; to replace it, set chat_template to the text of another one")


def _evaluation_batch(values: Mapping[str, Any], defaults: dict[str, Any]) -> None:
    """The micro-batch of evaluation is by default that of training."""
    name = "per_device_train_batch_size"
    defaults["hyperparameters.per_device_eval_batch_size"] = values.get("hyperparameters", {}).get(name, 1)


_CADENCE = (
    "evaluations and checkpoints are every eval_steps and save_steps steps; `ftf validate` shows the number of steps"
)
_PREFERENCES = "only supervised fine-tuning and training on text are available"

AXOLOTL = Program(
    "axolotl",
    "Axolotl",
    frozenset({"micro_batch_size", "sequence_len", "adapter", "datasets", "val_set_size", "sample_packing"}),
    table(
        SHARED.values(),
        Rule(("adapter", "load_in_4bit", "load_in_8bit"), _method, decides="method"),
        Rule(("lora_target_linear", "lora_target_modules"), _targets),
        Rule(
            ("flash_attention", "sdp_attention", "eager_attention", "xformers_attention", "flex_attention"), _attention
        ),
        Rule(("datasets",), lambda given: _sources("training_data", given)),
        Rule(("test_datasets",), lambda given: _sources("evaluation_data", given)),
        Rule(("pretraining_dataset",), lambda given: _sources("training_data", given)),
        Rule(("val_set_size",), held_out, decides="holdout_fraction"),
        Rule(("train_on_inputs",), _response),
        Rule(("special_tokens",), _padding),
        Rule(("chat_template",), _template),
        rename("chat_template", "chat_template_jinja", home=""),
        rename("system_prompt", "default_system_message", home=""),
        rename("display_name", "wandb_name", home=""),
        rename("hyperparameters.max_length", "sequence_len"),
        rename("hyperparameters.packing", "sample_packing"),
        rename("hyperparameters.per_device_train_batch_size", "micro_batch_size"),
        rename("hyperparameters.per_device_eval_batch_size", "eval_batch_size"),
        chosen("hyperparameters.truncation", ("excess_length_strategy",), {"drop": "drop", "truncate": "keep_start"}),
        rename("lora.use_dora", "peft_use_dora"),
        rename("lora.use_rslora", "peft_use_rslora"),
        rename("lora.init_lora_weights", "peft_init_lora_weights"),
        listed("lora.modules_to_save", "lora_modules_to_save"),
        rename("lora.layers_to_transform", "peft_layers_to_transform", "lora_layers_to_transform"),
        without(
            "the rows of a step are per_device_train_batch_size times gradient_accumulation_steps; set these",
            "batch_size",
        ),
        without("weights are linear layers", "lora_fan_in_fan_out"),
        without(NO_SETTING, "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "loraplus_lr_embedding"),
        any_value("the model is loaded by its configuration", "model_type", "tokenizer_type", "is_llama_derived_model"),
        any_value(
            "the tokens are prepared by preflight", "dataset_prepared_path", "dataset_processes", "strict", "debug"
        ),
        any_value("padding is not trained and does not change the results", "pad_to_sequence_len"),
        fixed([False], "held-out rows are never packed", "held-out rows are never packed", "eval_sample_packing"),
        without(_CADENCE, "evals_per_epoch", "saves_per_epoch"),
        without("set evaluation.num_samples and evaluation.max_new_tokens", "eval_table_size", "eval_max_new_tokens"),
        without(_PREFERENCES, "rl", "reward_model", "process_reward_model"),
        without("there are no plug-ins", "plugins", "liger_rope", "liger_rms_norm", "liger_glu_activation"),
        without(NO_SETTING, "liger_layer_norm", "liger_fused_linear_cross_entropy", "cut_cross_entropy"),
        without(NO_SETTING, "unfrozen_parameters", "loss_watchdog_threshold", "loss_watchdog_patience"),
        without("a secret is named in secrets.hub_token, see `ftf secrets set`", "hf_use_auth_token"),
    ),
    {
        "method": "full",
        "holdout_fraction": 0.0,
        "hyperparameters.packing": False,
        "hyperparameters.group_by_length": False,
        "hyperparameters.num_epochs": 1,
        "hyperparameters.gradient_accumulation_steps": 1,
        "hyperparameters.per_device_train_batch_size": 1,
        "hyperparameters.max_length": 512,
        "hyperparameters.lr_scheduler_type": "cosine",
        "hyperparameters.weight_decay": 0.0,
        "hyperparameters.early_stopping_patience": 0,
        "hyperparameters.truncation": "drop",
        "hyperparameters.optim": "adamw_torch_fused",
        "lora.lora_dropout": 0.0,
    },
    objective=frozenset({"rl"}),
    adjust=_evaluation_batch,
)
