"""Translation of a job's configuration to the arguments of TRL's SFTConfig."""

from typing import Any, Literal

from engine.config.deepspeed import deepspeed_arguments
from engine.config.job import JobConfig, chosen
from engine.config.schedule import num_warmup_steps, scheduler_arguments, scheduler_name


def sft_arguments(
    config: JobConfig, *, total_steps: int, output_dir: str, device: Literal["cpu", "cuda"]
) -> dict[str, Any]:
    """Returns the keyword arguments of `trl.SFTConfig` for a resolved configuration.

    Rows are token ids with labels, so TRL's text processing is off. The caller retains checkpoints and chooses the
    best: the Trainer's own rules can delete the best step.
    """
    hyper = config.hyperparameters
    if "auto" in (config.method, hyper.precision, hyper.optim):
        raise ValueError("the configuration has automatic values; preflight must resolve them first")
    zero = deepspeed_arguments(config, device=device)
    return {
        "output_dir": output_dir,
        "num_train_epochs": hyper.num_epochs,
        # Preflight's number, so that schedule and progress do not depend on how a library counts.
        "max_steps": total_steps,
        "learning_rate": hyper.learning_rate,
        "per_device_train_batch_size": chosen(hyper.per_device_train_batch_size),
        "per_device_eval_batch_size": chosen(hyper.per_device_eval_batch_size),
        "gradient_accumulation_steps": chosen(hyper.gradient_accumulation_steps),
        "max_length": hyper.max_length,
        "warmup_steps": num_warmup_steps(hyper, total_steps),
        "weight_decay": hyper.weight_decay,
        "lr_scheduler_type": scheduler_name(hyper),
        "lr_scheduler_kwargs": scheduler_arguments(hyper),
        "optim": hyper.optim,
        # With DeepSpeed, they would give the trained weights 16 bits; the trainer's child sees to the precision itself.
        "bf16": hyper.precision == "bf16" and zero is None,
        "fp16": hyper.precision == "fp16" and zero is None,
        "use_cpu": device == "cpu",
        "deepspeed": zero,
        "activation_checkpointing": chosen(hyper.gradient_checkpointing),
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "neftune_noise_alpha": hyper.neftune_noise_alpha,
        "max_grad_norm": hyper.max_grad_norm,
        "logging_strategy": "steps",
        "logging_steps": hyper.logging_steps,
        # Watchers must see NaN: with the filter a diverged run looks healthy.
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if config.evaluates_while_training else "no",
        "eval_steps": chosen(hyper.eval_steps),
        "save_strategy": "steps",
        "save_steps": chosen(hyper.save_steps),
        "save_total_limit": None,
        "load_best_model_at_end": False,
        "restore_callback_states_from_checkpoint": True,
        # A streamed corpus consists of packed sequences already.
        "packing": chosen(hyper.packing) and not hyper.streaming,
        "packing_strategy": "bfd",
        "eval_packing": False,
        "completion_only_loss": False,
        "assistant_only_loss": False,
        "train_sampling_strategy": "group_by_length" if chosen(hyper.group_by_length) else "random",
        "seed": config.seed,
        "data_seed": config.seed,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": device == "cuda",
    }
