"""A training program whose files can be imported, and the rules that several programs share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetuneflow.setting_names import (
    JOB_RULES,
    OUTPUT,
    TOKENS,
    NoCounterpart,
    Outcome,
    Rule,
    Rules,
    implied,
    is_false,
    precision,
    rename,
    table,
    without,
)

OPTIMIZERS = {
    name: name
    for name in (
        "adamw_torch",
        "adamw_torch_fused",
        "adamw_8bit",
        "paged_adamw_8bit",
        "paged_adamw_32bit",
        "adafactor",
        "sgd",
    )
} | {"adamw_bnb_8bit": "adamw_8bit", "paged_adamw": "paged_adamw_32bit"}
SCHEDULERS = (
    "linear",
    "cosine",
    "constant",
    "constant_with_warmup",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
)
ATTENTION = ("auto", "eager", "sdpa", "flash_attention_2")


@dataclass(frozen=True)
class Program:
    """One training program."""

    name: str
    title: str
    marks: frozenset[str]
    """Names that only this program's files have."""
    rules: Rules
    defaults: Mapping[str, Any]
    """The program's own defaults, where ours differ: path in the spec → value for a file that does not set it."""
    objective: frozenset[str]
    """Names that say what is trained for; if one has no counterpart, nothing of the file can be imported."""
    nulls: Mapping[str, str] = field(default_factory=dict)
    """Name for which null is a value, and not the default → why it has no counterpart."""
    adjust: Callable[[Mapping[str, Any], dict[str, Any]], None] = field(default=lambda _, __: None)
    """Adjusts `defaults` to what a file sets."""


def chosen(path: str, names: Iterable[str], allowed: Iterable[str] | Mapping[str, str]) -> list[Rule]:
    """Returns rules for names of the field at `path`, which has the values `allowed`, ours by theirs."""
    known = allowed if isinstance(allowed, Mapping) else {each: each for each in allowed}

    def convert(given: Mapping[str, Any]) -> Outcome:
        (value,) = given.values()
        if str(value).lower() not in known:
            ours = ", ".join(dict.fromkeys(known.values()))
            raise NoCounterpart(f"{path} is one of {ours}; the default of the recipe applies")
        return Outcome({path: known[str(value).lower()]})

    return [Rule((name,), convert, renames=path) for name in names]


def fixed(accepted: Iterable[Any], note: str, otherwise: str, *names: str) -> list[Rule]:
    """Returns rules for settings that have one value here."""
    return [implied(name, accepted, note, otherwise, home="") for name in names]


def any_value(note: str, *names: str) -> list[Rule]:
    """Returns rules for settings that do not change the trained model."""
    return [Rule((name,), lambda _: Outcome(note=note)) for name in names]


def whole_steps(path: str, *names: str) -> list[Rule]:
    """Returns rules for a number of steps; other programs take a fraction of all steps as well."""

    def convert(given: Mapping[str, Any]) -> Outcome:
        (value,) = given.values()
        if isinstance(value, float) and 0 < value < 1:
            raise NoCounterpart(f"{path} is a number of steps, not a fraction of all steps")
        return Outcome({path: value})

    return [Rule((name,), convert, renames=path) for name in names]


def held_out(given: Mapping[str, Any]) -> Outcome:
    """Translates the size of the held-out set: a fraction, or a number of rows."""
    (value,) = given.values()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value >= 1:
        raise NoCounterpart("held-out rows are a fraction of the rows: set holdout_fraction, or name evaluation_data")
    return Outcome({"holdout_fraction": float(value)})


def names_in(value: Any) -> Any:
    """Returns the names in a text, between commas or spaces; any other value as it is."""
    return value.replace(",", " ").split() if isinstance(value, str) else value


def is_file(place: str) -> bool:
    """Returns True for what can only be a path of a file or folder, and no id of the hub."""
    return place.startswith((".", "/", "~")) or place.endswith(_ENDINGS)


_ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".gz", ".zst")


def listed(path: str, *names: str) -> list[Rule]:
    """Returns rules for names of a list, which may also be text."""

    def convert(given: Mapping[str, Any]) -> Outcome:
        (value,) = given.values()
        items = names_in(value)
        if path == "lora.target_modules" and items in (["all"], ["all-linear"]):
            items = ["all-linear"]
        return Outcome({path: items})

    return [Rule((name,), convert, renames=path) for name in names]


TRACKERS = "name trackers in `integrations`: wandb with a secret, mlflow with an address, or tensorboard"
PUSH = "a push needs a secret of yours, so name it yourself: export.hub.repo_id and secrets.hub_write_token"
SEVERAL_DEVICES = "several devices of a node train together with resources.gpus and resources.parallelism"
_DEEPSPEED_FILE = "convert that file itself, with `ftf import-config FILE --from deepspeed`, and add what it sets"
OWN_LOADING = "loading of data is managed by the server and does not change the trained model"
NO_SETTING = "no setting of a job does this"
_KERNEL = "there is no switch for it; it changes speed or memory, not what is trained"


def _recompute_arguments(given: Mapping[str, Any]) -> Outcome:
    (value,) = given.values()
    if isinstance(value, Mapping) and set(value) <= {"use_reentrant"}:
        return Outcome(note="activations are recomputed with use_reentrant = false, with the same results")
    raise NoCounterpart("only use_reentrant is known")


def _warmup(given: Mapping[str, Any]) -> Outcome:
    """Translates the warm-up; steps override the ratio, and 0 steps mean unset."""
    steps, ratio = given.get("warmup_steps"), given.get("warmup_ratio")
    if isinstance(steps, float) and 0 < steps < 1:
        steps, ratio = None, steps
    if steps and ratio:
        return Outcome({"hyperparameters.warmup_steps": steps}, "steps override the ratio")
    if steps or ratio is None:
        return Outcome({"hyperparameters.warmup_steps": steps})
    note = "rounded down to whole steps; the transformers library rounds up" if ratio else ""
    return Outcome({"hyperparameters.warmup_ratio": ratio}, note)


def _precision(given: Mapping[str, Any]) -> Outcome:
    """Translates `bf16` and `fp16`. Without them, programs choose by the hardware."""
    if given.get("bf16") == "full":
        kept = "trained weights are fp32 here; the others have the precision bf16"
        return Outcome({"hyperparameters.precision": "bf16"}, lost={"": kept})
    if "bf16" not in given and is_false(given["fp16"]):
        return Outcome(note="the precision is chosen by the hardware")
    return precision(given)


SHARED: Rules = table(
    JOB_RULES.values(),
    rename("base_model", "base_model", "model_name_or_path", "model_name", home=""),
    rename("seed", "seed", home=""),
    Rule((OUTPUT,), Outcome),
    chosen("hyperparameters.optim", ("optim", "optimizer"), OPTIMIZERS),
    chosen("hyperparameters.lr_scheduler_type", ("lr_scheduler_type", "lr_scheduler"), SCHEDULERS),
    chosen("hyperparameters.attn_implementation", ("attn_implementation",), ATTENTION),
    whole_steps("hyperparameters.eval_steps", "eval_steps"),
    whole_steps("hyperparameters.save_steps", "save_steps"),
    whole_steps("hyperparameters.logging_steps", "logging_steps"),
    rename("lora.lora_alpha", "lora_alpha"),
    rename("lora.r", "lora_r"),
    Rule(("bf16", "fp16"), _precision),
    Rule(("warmup_steps", "warmup_ratio"), _warmup),
    Rule(("gradient_checkpointing_kwargs",), _recompute_arguments),
    any_value(OWN_LOADING, "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
    any_value(OWN_LOADING, "dataloader_persistent_workers", "dataset_num_proc", "remove_unused_columns"),
    any_value("the server names and keeps the files", "overwrite_output_dir", "logging_dir", "disable_tqdm"),
    any_value("the server names and keeps the files", "save_safetensors", "log_level", "logging_first_step"),
    fixed([0.9], "the optimizer's value here", "the optimizer's betas are 0.9 and 0.999", "adam_beta1"),
    fixed([0.999], "the optimizer's value here", "the optimizer's betas are 0.9 and 0.999", "adam_beta2"),
    fixed([1e-8], "the optimizer's value here", "the optimizer's epsilon is 1e-8", "adam_epsilon"),
    fixed([0], "evaluation starts with step eval_steps", "evaluation starts with step eval_steps", "eval_delay"),
    without(
        "the result of a job cannot be resumed by path; `ftf jobs resume` continues a job", "resume_from_checkpoint"
    ),
    without(TRACKERS, "wandb_project", "wandb_entity", "wandb_watch", "wandb_name", "wandb_log_model", "wandb_run_id"),
    without(TRACKERS, "wandb_mode", "mlflow_tracking_uri", "mlflow_experiment_name", "use_wandb", "use_mlflow"),
    without(TRACKERS, "use_tensorboard"),
    without(PUSH, "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo"),
    without(
        TRACKERS,
        "use_swanlab",
        "swanlab_project",
        "comet_project_name",
        "report_to",
        "trackio_space_id",
        off=["none", ["none"]],
    ),
    without(_DEEPSPEED_FILE, "deepspeed"),
    without(SEVERAL_DEVICES, "fsdp", "fsdp_config", "fsdp_version", "ddp_backend", "tensor_parallel_size"),
    without(SEVERAL_DEVICES, "context_parallel_size", "sequence_parallel_degree", "ddp_find_unused_parameters"),
    without(SEVERAL_DEVICES, "parallelism_config"),
    any_value("the processes are started by the server", "ddp_timeout", "local_rank", "ddp_bucket_cap_mb"),
    without(_KERNEL, "torch_compile", "use_liger_kernel", "tf32", "activation_offloading", "auto_find_batch_size"),
    without(_KERNEL, "torch_empty_cache_steps", "padding_free", "low_cpu_mem_usage"),
    without("a checkpoint can always be resumed", "save_only_model"),
    without(NO_SETTING, "full_determinism", "lr_scheduler_kwargs", "optim_args", "eval_on_start"),
    without(NO_SETTING, "optim_target_modules", "loraplus_lr_ratio", "loraplus_lr_embedding"),
    without(TOKENS, "hf_token", "hub_token", "hf_hub_token", "push_to_hub_token", "token", hidden=True),
    without(TOKENS, "wandb_api_key", "swanlab_api_key", hidden=True),
)
"""Names that mean the same in every program."""
