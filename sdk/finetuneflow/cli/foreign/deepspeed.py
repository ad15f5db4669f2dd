"""DeepSpeed: its configuration file, as `deepspeed --deepspeed_config FILE` and `deepspeed` of transformers take it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from finetuneflow.cli.foreign.program import NO_SETTING, TRACKERS, Program, any_value
from finetuneflow.setting_names import NoCounterpart, Outcome, Rule, is_true, table, without

_AUTO = "auto stands for an argument of the program that reads the file; set it for the job"
_SERVER = "chosen by the server; it changes speed or memory, not what is trained"
_STAGE_3_OFFLOAD = (
    "stage 3 is fsdp here, which keeps nothing in main memory; set resources.parallelism to fsdp, or to zero2_offload, "
    "which has the state of the optimizer there"
)
_OFF = (
    "the precision is chosen by the hardware; DeepSpeed alone trains in fp32 if both are off: set "
    "hyperparameters.precision to fp32 for that"
)
_OPTIMIZERS = {"adam": "adamw_torch", "adamw": "adamw_torch", "sgd": "sgd"}
_SCHEDULERS = {"WarmupLR": "constant_with_warmup", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
_FREE = frozenset(
    {
        "allgather_partitions",
        "allgather_bucket_size",
        "overlap_comm",
        "reduce_scatter",
        "reduce_bucket_size",
        "contiguous_gradients",
        "round_robin_gradients",
        "use_multi_rank_bucket_allreduce",
        "cpu_offload_use_pin_memory",
        "sub_group_size",
        "ignore_unused_parameters",
        "elastic_checkpoint",
        "load_from_fp32_weights",
        "memory_efficient_linear",
    }
)
"""Names of `zero_optimization` that change speed or memory only."""
_MICRO, _ACCUMULATION = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"


def _section(given: Mapping[str, Any], known: Iterable[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the values of a section whose names are known, and why the others are lost. Raises NoCounterpart."""
    (value,) = given.values()
    if not isinstance(value, Mapping):
        raise NoCounterpart("must be a table")
    lost = {f".{name}": "not known here" for name in value if name not in known}
    return {name: each for name, each in value.items() if name in known}, lost


def _batches(given: Mapping[str, Any]) -> Outcome:
    """Translates rows of a step, of a micro-batch, and their number; together they give the number of GPUs."""
    numbers = {name: value for name, value in given.items() if value != "auto"}
    lost = {"": _AUTO} if len(numbers) < len(given) else {}
    micro, accumulation, step = numbers.get(_MICRO), numbers.get(_ACCUMULATION), numbers.get("train_batch_size")
    sets = {}
    if micro is not None:
        sets["hyperparameters.per_device_train_batch_size"] = micro
    if accumulation is not None:
        sets["hyperparameters.gradient_accumulation_steps"] = accumulation
    if step is None:
        return Outcome(sets, lost=lost)
    if micro is not None and accumulation is not None:
        gpus, rest = divmod(step, micro * accumulation)
        if rest or not gpus:
            raise NoCounterpart(f"train_batch_size is no multiple of {_MICRO} x {_ACCUMULATION}")
        return Outcome(sets | {"resources.gpus": gpus}, "the rows of a step, divided by those of each GPU")
    reason = (
        "the rows of a step of all GPUs: set resources.gpus, hyperparameters.per_device_train_batch_size and "
        f"hyperparameters.gradient_accumulation_steps so that their product is {step}"
    )
    return Outcome(sets, lost={"": reason})


def _zero(given: Mapping[str, Any]) -> Outcome:
    """Translates the stage, and where the state of the optimizer is."""
    section, lost = _section(given, ("stage", "offload_optimizer", "offload_param", "cpu_offload", *_FREE))
    stage, offload = section.get("stage", 0), section.get("offload_optimizer") or {}
    if stage not in (0, 1, 2, 3):
        raise NoCounterpart("the stage must be 0, 1, 2 or 3")
    device = offload.get("device", "none") if isinstance(offload, Mapping) else offload
    if is_true(section.get("cpu_offload")):
        device = "cpu"
    if device not in ("none", None, "cpu"):
        lost[".offload_optimizer"] = "the state of the optimizer can be in main memory (cpu), not on a disk"
        device = "cpu"
    if isinstance(offload, Mapping):
        placed = ("device", "pin_memory", "buffer_count", "fast_init")
        lost |= {f".offload_optimizer.{name}": "not known here" for name in offload if name not in placed}
    if stage == 3 and (device == "cpu" or section.get("offload_param")):
        raise NoCounterpart(_STAGE_3_OFFLOAD)
    shared = "ddp" if stage == 0 else "fsdp" if stage == 3 else "zero2_offload" if device == "cpu" else "zero2"
    notes = ["it needs resources.gpus of 2 or more; for one GPU, remove resources.parallelism"] if stage else []
    notes += ["zero2 divides the gradients as well, with the same results"] if stage == 1 else []
    notes += ["PyTorch divides the weights, gradients and states in the same way"] if stage == 3 else []
    notes += [f"{', '.join(chosen)}: {_SERVER}"] if (chosen := [name for name in section if name in _FREE]) else []
    return Outcome({"resources.parallelism": shared}, "; ".join(notes), lost)


def _fp16(given: Mapping[str, Any]) -> Outcome:
    (value,) = given.values()
    enabled = value.get("enabled") if isinstance(value, Mapping) else value
    if is_true(enabled):
        raise NoCounterpart(
            "zero2 and zero2_offload train in bf16 or fp32, which preflight chooses; with ddp, set "
            "hyperparameters.precision to fp16"
        )
    if enabled == "auto":
        raise NoCounterpart(_AUTO)
    return Outcome(note=_OFF)


def _bf16(given: Mapping[str, Any]) -> Outcome:
    section, lost = _section(given, ("enabled", "check_grad_overflow"))
    if section.get("enabled") == "auto":
        raise NoCounterpart(_AUTO)
    if not is_true(section.get("enabled")):
        return Outcome(note=_OFF, lost=lost)
    return Outcome({"hyperparameters.precision": "bf16"}, "the trained weights have 32 bits here", lost)


def _optimizer(given: Mapping[str, Any]) -> Outcome:
    section, lost = _section(given, ("type", "params"))
    name = str(section.get("type", "")).lower()
    if name not in _OPTIMIZERS:
        raise NoCounterpart("one of AdamW, Adam and SGD; the default of the recipe applies")
    params = section.get("params") or {}
    sets: dict[str, Any] = {"hyperparameters.optim": _OPTIMIZERS[name]}
    fixed = {"betas": ([0.9, 0.999],), "eps": (1e-8,), "torch_adam": (True, False), "adam_w_mode": (True,)}
    if name == "sgd":
        fixed = {"momentum": (0, 0.0)}
    for key, value in params.items():
        if value == "auto":
            lost[f".params.{key}"] = _AUTO
        elif key in ("lr", "weight_decay"):
            sets["hyperparameters.learning_rate" if key == "lr" else "hyperparameters.weight_decay"] = value
        elif value not in fixed.get(key, ()):
            only = " or ".join(map(str, fixed.get(key, ())))
            lost[f".params.{key}"] = f"it is {only} here" if only else "not known here"
    return Outcome(sets, lost=lost)


def _scheduler(given: Mapping[str, Any]) -> Outcome:
    section, lost = _section(given, ("type", "params"))
    name = section.get("type")
    if name not in _SCHEDULERS:
        raise NoCounterpart(f"one of {', '.join(_SCHEDULERS)}; the default of the recipe applies")
    params = section.get("params") or {}
    names = {
        "warmup_num_steps": "hyperparameters.warmup_steps",
        "total_num_steps": "hyperparameters.max_steps",
        "warmup_max_lr": "hyperparameters.learning_rate",
    }
    sets: dict[str, Any] = {"hyperparameters.lr_scheduler_type": _SCHEDULERS[name]}
    for key, value in params.items():
        if value == "auto":
            lost[f".params.{key}"] = _AUTO
        elif key in names:
            sets[names[key]] = value
        elif (key, value) not in (("warmup_min_lr", 0), ("warmup_type", "linear"), ("last_batch_iteration", -1)):
            lost[f".params.{key}"] = "the warm-up is linear here, from 0, and the schedule ends at 0"
    if params.get("warmup_type") is None and name != "WarmupCosineLR":
        lost[""] = "the warm-up is linear here; without warmup_type, DeepSpeed's is logarithmic"
    return Outcome(sets, lost=lost)


def _clipping(given: Mapping[str, Any]) -> Outcome:
    (value,) = given.values()
    if value == "auto":
        raise NoCounterpart(_AUTO)
    return Outcome({"hyperparameters.max_grad_norm": value})


def _if_enabled(why: str, *names: str) -> list[Rule]:
    """Returns rules for sections without counterpart that may be switched off."""

    def refuse(name: str) -> Callable[[Mapping[str, Any]], Outcome]:
        def convert(given: Mapping[str, Any]) -> Outcome:
            value = given[name]
            if value == {} or value is False or (isinstance(value, Mapping) and value.get("enabled") is False):
                return Outcome(note=_OFF)
            raise NoCounterpart(why)

        return convert

    return [Rule((name,), refuse(name)) for name in names]


DEEPSPEED = Program(
    "deepspeed",
    "DeepSpeed",
    frozenset(
        {
            "zero_optimization",
            "train_batch_size",
            _MICRO,
            "gradient_clipping",
            "steps_per_print",
            "wall_clock_breakdown",
        }
    ),
    table(
        Rule(
            ("train_batch_size", _MICRO, _ACCUMULATION),
            _batches,
            decides="hyperparameters.gradient_accumulation_steps",
        ),
        Rule(("zero_optimization",), _zero, decides="resources.parallelism"),
        Rule(("fp16",), _fp16),
        Rule(("bf16",), _bf16),
        Rule(("bfloat16",), _bf16),
        Rule(("optimizer",), _optimizer),
        Rule(("scheduler",), _scheduler),
        Rule(("gradient_clipping",), _clipping, renames="hyperparameters.max_grad_norm"),
        any_value(_SERVER, "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "communication_data_type"),
        any_value(_SERVER, "prescale_gradients", "gradient_predivide_factor", "data_types", "disable_allgather"),
        any_value("logs are events of the job: `ftf jobs watch JOB`", "steps_per_print", "dump_state"),
        any_value("logs are events of the job: `ftf jobs watch JOB`", "wall_clock_breakdown", "memory_breakdown"),
        any_value("checkpoints are written and kept by the server", "checkpoint"),
        _if_enabled(TRACKERS, "tensorboard", "wandb", "csv_monitor", "comet"),
        _if_enabled("set hyperparameters.gradient_checkpointing", "activation_checkpointing"),
        _if_enabled("states are in main memory or on the GPU, not on a disk", "aio"),
        _if_enabled("a training keeps its number of processes", "elasticity"),
        _if_enabled(NO_SETTING, "amp", "torch_autocast", "flops_profiler", "comms_logger", "autotuning"),
        _if_enabled(NO_SETTING, "sparse_attention", "compression_training", "data_efficiency", "curriculum_learning"),
        _if_enabled(NO_SETTING, "progressive_layer_drop", "eigenvalue", "tensor_parallel", "compile"),
        without(NO_SETTING, "sparse_gradients"),
    ),
    {
        "hyperparameters.gradient_accumulation_steps": 1,
        "hyperparameters.max_grad_norm": 0.0,
    },
    objective=frozenset(),
)
