"""What a training child does before anything is known of its job."""

import importlib
import os
import sys
from pathlib import Path

_GPU_FILES = ("/dev/nvidia", "/dev/kfd", "/dev/dri")


class TouchedDevice(Exception):
    """Something opened a GPU before the process was told which one is its own."""


def quiet() -> None:
    """Settings that libraries read when they are imported."""
    # Everything needed is on disk; peft and transformers would ask the hub about the base model's name, and trl would
    # tell it of the training, from a thread whose look at the environment crashes while accelerate empties that.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Bars on stderr would push the lines that matter out of the last ones that a failure reports.
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"


def warm_up() -> None:
    """Imports what every training needs. TouchedDevice: this process must not be used."""
    quiet()
    # peft imports it where it is installed, and it looks at the GPUs then. A job that needs it gets a cold child.
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    importlib.import_module("services.trainer.worker.recipe")
    # Libraries load these on first use, which would be after the start.
    for name in ("transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama"):
        importlib.import_module(name)
    opened = [target for target in _open_files() if target.startswith(_GPU_FILES)]
    if opened:
        raise TouchedDevice(f"an import has opened {opened[0]}")


def _open_files() -> list[str]:
    found = []
    for link in Path("/proc/self/fd").glob("*"):
        try:
            found.append(str(link.readlink()))
        except OSError:
            continue
    return found
