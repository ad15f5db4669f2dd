"""Translation of a job's configuration to the one of DeepSpeed, for its ZeRO stage 2."""

from typing import Any, Final, Literal

from engine.config.job import JobConfig, chosen

BUCKET_ELEMENTS: Final = 20_000_000
"""Values of 4 bytes that are sent at once; gradients are collected in a buffer of this size. DeepSpeed's default of 5e8
would allocate 2 GB, twice the memory of most adapters' training; 80 MB are large enough to use the connection fully."""


def deepspeed_arguments(config: JobConfig, *, device: Literal["cpu", "cuda"]) -> dict[str, Any] | None:
    """Returns DeepSpeed's configuration for a resolved job; None if its processes share the training in another way.

    Optimizer, schedule and number format are the Trainer's: DeepSpeed gets weights of 32 bits, which it divides among
    the processes, and no section of its own for fp16 or bf16, which would round the weights that are trained.
    """
    if not config.resources.uses_deepspeed:
        return None
    zero: dict[str, Any] = {
        "stage": 2,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
    }
    if config.resources.parallelism == "zero2_offload":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device == "cuda"}
    hyper = config.hyperparameters
    return {
        "train_micro_batch_size_per_gpu": chosen(hyper.per_device_train_batch_size),
        "gradient_accumulation_steps": chosen(hyper.gradient_accumulation_steps),
        "train_batch_size": config.rows_per_step,
        "gradient_clipping": hyper.max_grad_norm,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "zero_optimization": zero,
        # Offloaded states are updated by the optimizer that the job names, not by one that DeepSpeed compiles.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
    }
