"""Warm-up of a training child, before it has an input."""

import importlib
import sys
import tempfile
from pathlib import Path

from services.quiet_environment import quiet_environment

_GPU_FILES = ("/dev/nvidia", "/dev/kfd", "/dev/dri")


class DeviceInitialized(Exception):
    """An import opened a GPU before the process was assigned one."""


def warm_up() -> None:
    """Completes what a training does once in a process. Raises DeviceInitialized if this one must not be used."""
    quiet_environment()
    # peft imports it if installed, and it opens the GPUs then. A job that needs it gets a cold child.
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    importlib.import_module("services.trainer.worker.recipe")
    # Libraries load these on first use, which would be after the start.
    for name in ("transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama"):
        importlib.import_module(name)
    _load_a_model()
    opened = [target for target in _open_files() if target.startswith(_GPU_FILES)]
    if opened:
        raise DeviceInitialized(f"an import has opened {opened[0]}")


def _load_a_model() -> None:
    """Loads a model of a few weights with an adapter: the first time transformers and peft compile hundreds of patterns
    and import more modules, which takes half a second."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from engine.config.job import Lora
    from engine.model.adapter import attach_lora
    from engine.model.load import load_base

    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        LlamaForCausalLM(config).save_pretrained(folder)
        model = load_base(folder, dtype=torch.float32, on="cpu")
        attach_lora(
            model, Lora(), model_dir=folder, base_id="", revision="", quantised=False, gradient_checkpointing=False
        )


def _open_files() -> list[str]:
    found = []
    for link in Path("/proc/self/fd").glob("*"):
        try:
            found.append(str(link.readlink()))
        except OSError:
            continue
    return found
