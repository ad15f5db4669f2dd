"""What is trained: adapters on frozen weights, adapters on quantised weights, or every weight."""

from typing import Any

import torch

from engine.config.job import JobConfig
from engine.model import load
from services.child_input import ModelFiles


def trainable_model(config: JobConfig, files: ModelFiles, on: load.Device) -> Any:
    """The base model with what `config.method` trains on it, ready for a Trainer.

    Adapters start from torch's random state: seed it first.
    """
    hyper = config.hyperparameters
    quantised = config.method == "qlora"
    model = load.load_base(
        files.path,
        dtype=load.weights_dtype(config.method, hyper.precision, on),
        on=on,
        quantization=config.quantization if quantised else None,
    )
    model.config.use_cache = False
    if config.method == "full":
        return model
    return load.attach_lora(
        model,
        config.lora,
        base_id=files.id,
        revision=files.revision,
        quantised=quantised,
        gradient_checkpointing=bool(hyper.gradient_checkpointing),
    )


def keep_trained_weights_float32(model: Any) -> None:
    """Undoes TRL's cast of the adapters of a quantised model to bfloat16, whose 8 bits of mantissa round most updates
    away. Call it before the optimizer is made."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
