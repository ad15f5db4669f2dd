"""What a training child does before anything is known of its job."""

import importlib
import sys
from pathlib import Path

from services.quiet_environment import quiet_environment

_GPU_FILES = ("/dev/nvidia", "/dev/kfd", "/dev/dri")


class TouchedDevice(Exception):
    """Something opened a GPU before the process was told which one is its own."""


def warm_up() -> None:
    """Imports what every training needs. TouchedDevice: this process must not be used."""
    quiet_environment()
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
