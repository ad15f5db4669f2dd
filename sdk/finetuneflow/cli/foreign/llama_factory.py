"""LLaMA-Factory: the files of `llamafactory-cli train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetuneflow.cli.foreign.program import NO_SETTING, SHARED, Program, any_value, chosen, fixed, held_out, listed
from finetuneflow.setting_names import NoCounterpart, Outcome, Rule, is_true, rename, table, without


def _stage(given: Mapping[str, Any]) -> Outcome:
    """Translates what is trained on; text is packed unless the file says otherwise."""
    stage = given.get("stage")
    if stage not in (None, "sft", "pt"):
        raise NoCounterpart("only supervised fine-tuning (sft) and training on text (pt) are available")
    scope = "all" if stage == "pt" or is_true(given.get("train_on_prompt")) else "response"
    apart = is_true(given.get("neat_packing"))
    packs = apart or (is_true(given["packing"]) if "packing" in given else stage == "pt")
    sets = {"hyperparameters.loss_on": scope, "hyperparameters.packing": packs}
    differs = "rows of a pack do not attend to each other, as with neat_packing"
    if not packs or apart:
        return Outcome(sets)
    return Outcome(sets, lost={"": differs}) if "packing" in given else Outcome(sets, f"packed by default; {differs}")


def _method(given: Mapping[str, Any]) -> Outcome:
    """Translates what is trained, and the quantization of the base weights."""
    kind, bits = given.get("finetuning_type") or "lora", given.get("quantization_bit")
    if kind not in ("lora", "full") or (kind == "full" and bits):
        raise NoCounterpart("use finetuning_type lora, with or without quantization_bit, or full without it")
    if bits is not None and bits not in (4, 8):
        raise NoCounterpart("weights have 4 or 8 bits")
    return Outcome({"method": "qlora", "quantization.bits": bits} if bits else {"method": kind})


def _pissa(given: Mapping[str, Any]) -> Outcome:
    if not is_true(given.get("pissa_init")):
        return Outcome(note="off here too")
    steps = given.get("pissa_iter", 16)
    return Outcome({"lora.init_lora_weights": "pissa" if steps == -1 else f"pissa_niter_{steps}"})


_ATTENTION = {"auto": "auto", "disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2"}
_NAMES = "names of dataset_info.json; name the files themselves, as DATA or in training_data"
_TEMPLATE = "the model's own chat template is used; to replace it, set chat_template to the text of another one"
_CONVERTED = "the adapter is always converted for the unchanged base"


def _alpha(values: Mapping[str, Any], defaults: dict[str, Any]) -> None:
    """The default of alpha is twice the rank."""
    lora = values.get("lora")
    rank = lora.get("r") if isinstance(lora, Mapping) else None
    if isinstance(rank, int):
        defaults["lora.lora_alpha"] = 2 * rank


LLAMA_FACTORY = Program(
    "llama-factory",
    "LLaMA-Factory",
    frozenset({"finetuning_type", "cutoff_len", "stage", "lora_target", "template", "dataset_dir", "lora_rank"}),
    table(
        SHARED.values(),
        Rule(("packing", "neat_packing", "stage", "train_on_prompt"), _stage),
        Rule(("finetuning_type", "quantization_bit"), _method, decides="method"),
        Rule(("pissa_init", "pissa_iter"), _pissa),
        Rule(("val_size",), held_out, decides="holdout_fraction"),
        rename("hyperparameters.max_length", "cutoff_len"),
        rename("lora.r", "lora_rank"),
        listed("lora.target_modules", "lora_target"),
        listed("lora.modules_to_save", "additional_target"),
        rename("quantization.bnb_4bit_quant_type", "quantization_type"),
        rename("quantization.bnb_4bit_use_double_quant", "double_quantization"),
        rename("system_prompt", "default_system", home=""),
        chosen("hyperparameters.attn_implementation", ("flash_attn",), _ATTENTION),
        fixed(["bnb", "bitsandbytes"], "the quantization here too", "only bitsandbytes", "quantization_method"),
        fixed([True], "a job trains", "a job always trains", "do_train"),
        any_value("held-out rows are evaluated while training and at the end", "do_eval"),
        fixed([True], _CONVERTED, _CONVERTED, "pissa_convert"),
        fixed([True], "the package has the curve", "the package always has the curve", "plot_loss"),
        any_value(
            "the tokens are prepared by preflight", "overwrite_cache", "preprocessing_num_workers", "tokenized_path"
        ),
        any_value(
            "the tokens are prepared by preflight", "preprocessing_batch_size", "cache_dir", "use_fast_tokenizer"
        ),
        without(_NAMES, "dataset", "eval_dataset", "dataset_dir"),
        without(_TEMPLATE, "template"),
        without(
            'it belongs to a data source: training_data = [{ dataset = "FILE", max_samples = 1000 }]', "max_samples"
        ),
        without(
            "only supervised fine-tuning and training on text are available", "pref_loss", "pref_beta", "reward_model"
        ),
        without("upload it with `ftf datasets upload-adapter`, and set start_from to its id", "adapter_name_or_path"),
        without("sampling of an evaluation is greedy", "predict_with_generate", "do_predict"),
        without(NO_SETTING, "mask_history", "freeze_vision_tower"),
        without(NO_SETTING, "use_galore", "use_apollo", "use_badam", "use_llama_pro", "rope_scaling"),
        without(NO_SETTING, "streaming", "mix_strategy", "interleave_probs", "resize_vocab", "new_special_tokens"),
        without(
            "speed or memory only; there is no switch for it", "use_unsloth", "enable_liger_kernel", "upcast_layernorm"
        ),
        without("speed or memory only; there is no switch for it", "disable_gradient_checkpointing", "pure_bf16"),
    ),
    {
        "method": "lora",
        "holdout_fraction": 0.0,
        "hyperparameters.packing": False,
        "hyperparameters.group_by_length": False,
        "hyperparameters.num_epochs": 3,
        "hyperparameters.learning_rate": 5e-5,
        "hyperparameters.lr_scheduler_type": "linear",
        "hyperparameters.per_device_train_batch_size": 8,
        "hyperparameters.per_device_eval_batch_size": 8,
        "hyperparameters.gradient_accumulation_steps": 1,
        "hyperparameters.warmup_ratio": 0.0,
        "hyperparameters.weight_decay": 0.0,
        "hyperparameters.optim": "adamw_torch",
        "hyperparameters.save_steps": 500,
        "hyperparameters.early_stopping_patience": 0,
        "lora.r": 8,
        "lora.lora_alpha": 16,
        "lora.lora_dropout": 0.0,
    },
    objective=frozenset({"stage"}),
    adjust=_alpha,
)
