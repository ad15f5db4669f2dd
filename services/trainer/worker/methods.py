"""Training methods: adapters on frozen weights, adapters on quantised weights, or all weights."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from engine.config.job import JobConfig
from engine.model import load
from engine.model.adapter import attach_lora, load_adapter_weights
from services.child_input import ModelFiles
from services.trainer.worker.checkpoint import IncompleteCheckpoint


def trainable_model(
    config: JobConfig,
    files: ModelFiles,
    on: load.Device,
    resume_from: Path | None = None,
    start_from: Path | None = None,
    *,
    place: load.Device | None = None,
) -> Any:
    """Loads the base model and adds what `config.method` trains; adapters start from the adapter `start_from`, if any.

    The weights have the number format of a training on the device `on`, and are on that device, or on `place`.
    Adapters are initialised from torch's random state: seed it first. See `loads_checkpoint` for those of a resumed
    training.
    """
    hyper = config.hyperparameters
    quantised = config.method == "qlora"
    model = load.load_base(
        files.path,
        dtype=load.weights_dtype(config.method, hyper.precision, on),
        on=place or on,
        quantization=config.quantization if quantised else None,
        attention=hyper.attn_implementation,
    )
    model.config.use_cache = False
    if config.method == "full":
        return model
    return attach_lora(
        model,
        config.lora,
        model_dir=files.path,
        base_id=files.id,
        revision=files.revision,
        quantised=quantised,
        gradient_checkpointing=bool(hyper.gradient_checkpointing),
        resume_from=resume_from,
        start_from=start_from,
        start_mode=config.start_mode,
    )


def loads_checkpoint(config: JobConfig) -> bool:
    """Returns True if `trainable_model` loads the weights of the checkpoint to resume from; otherwise the Trainer does.

    Such checkpoints contain more than the adapter that is trained.
    """
    return config.method != "full" and (config.lora.changes_base or config.start_mode == "new")


def load_trained_weights(model: Any, checkpoint: Path) -> None:
    """Loads the weights of a checkpoint into a model whose weights are whole, one tensor after the other.

    Raises IncompleteCheckpoint if they are not all that is trained.
    """
    if hasattr(model, "peft_config"):
        load_adapter_weights(model, checkpoint)
        return
    weights = model.state_dict(keep_vars=True)
    loaded = set()
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                weights[name].data.copy_(opened.get_tensor(name))
                loaded.add(id(weights[name]))
    # A tied weight is in the file under one of its names.
    if missing := [name for name, value in weights.items() if id(value) not in loaded]:
        raise IncompleteCheckpoint(f"{checkpoint.name} has no weights {', '.join(missing[:3])}")


def keep_trained_weights_float32(model: Any) -> None:
    """Undoes TRL's cast of the adapters of a quantised model to bfloat16. Call it before the optimizer is created.

    bfloat16 has 8 bits of mantissa, which would round most updates away.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.to(torch.float32)
