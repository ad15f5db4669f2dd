"""Accelerate: the file that `accelerate config` writes, with the devices of a training and nothing about the rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetuneflow.cli.foreign.program import Program, any_value
from finetuneflow.setting_names import NoCounterpart, Outcome, Rule, is_true, rename, table, without

_PLACE = "processes are placed and started by the server"
_SECTION = "the parallelism is set with resources.parallelism: ddp, zero2, zero2_offload, or fsdp"
_PARALLELISM = {"NO": None, "MULTI_GPU": "ddp", "MULTI_CPU": "ddp", "FSDP": "fsdp"}


def _devices(given: Mapping[str, Any]) -> Outcome:
    """Translates the number of processes and how they share a training."""
    number, kind = given.get("num_processes"), str(given.get("distributed_type", "NO")).upper()
    sets: dict[str, Any] = {}
    if number is not None:
        on_cpu = is_true(given.get("use_cpu")) or kind == "MULTI_CPU"
        sets = {"resources.gpus": 0, "resources.world_size": number} if on_cpu else {"resources.gpus": number}
    if kind == "DEEPSPEED":
        file = "deepspeed_config_file of deepspeed_config"
        reason = f"zero2 or zero2_offload: convert {file} with `ftf import-config`, or set resources.parallelism"
        return Outcome(sets, lost={"": reason})
    if kind not in _PARALLELISM:
        raise NoCounterpart(f"one of {', '.join(_PARALLELISM)} and DEEPSPEED")
    if shared := _PARALLELISM[kind]:
        sets["resources.parallelism"] = shared
    return Outcome(sets)


def _machines(given: Mapping[str, Any]) -> Outcome:
    (value,) = given.values()
    if value not in (None, 1):
        raise NoCounterpart("several machines train together on a Ray cluster: set resources.gpus to all their GPUs")
    return Outcome(note="one machine here too")


ACCELERATE = Program(
    "accelerate",
    "Accelerate",
    frozenset({"compute_environment", "distributed_type", "num_machines", "mixed_precision", "main_training_function"}),
    table(
        Rule(("num_processes", "distributed_type", "use_cpu"), _devices, decides="resources.gpus"),
        Rule(("num_machines",), _machines),
        rename("hyperparameters.precision", "mixed_precision", values={"no": "fp32"}),
        rename("hyperparameters.gradient_accumulation_steps", "gradient_accumulation_steps"),
        rename("hyperparameters.max_grad_norm", "gradient_clipping"),
        any_value(_PLACE, "compute_environment", "machine_rank", "gpu_ids", "main_process_ip", "main_process_port"),
        any_value(_PLACE, "rdzv_backend", "same_network", "main_training_function", "tpu_env", "debug"),
        any_value(_PLACE, "enable_cpu_affinity", "tpu_use_cluster", "tpu_use_sudo", "deepspeed_hostfile"),
        without(_SECTION, "fsdp_config", "deepspeed_config", "megatron_lm_config", "parallelism_config"),
        without("it changes speed or memory, not what is trained", "downcast_bf16", "dynamo_config", off=["no"]),
        without("fp8 is not available; set hyperparameters.precision", "fp8_config"),
    ),
    {},
    objective=frozenset(),
)
