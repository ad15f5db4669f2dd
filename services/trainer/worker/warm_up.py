"""Warm-up of a training child, before it has an input."""

import importlib
import sys
from pathlib import Path

from services.quiet_environment import quiet_environment

_GPU_FILES = ("/dev/nvidia", "/dev/kfd", "/dev/dri")


class DeviceInitialized(Exception):
    """An import opened a GPU before the process was assigned one."""


def warm_up() -> None:
    """Completes the imports of a training. Raises DeviceInitialized if this process must not be used."""
    quiet_environment()
    # peft imports it if installed, and it opens the GPUs then. A job that needs it gets a cold child.
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    importlib.import_module("services.trainer.worker.recipe")
    # Libraries load these on first use, which would be after the start.
    for name in ("transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama"):
        importlib.import_module(name)
    opened = [target for target in _open_files() if target.startswith(_GPU_FILES)]
    if opened:
        raise DeviceInitialized(f"an import has opened {opened[0]}")


def _open_files() -> list[str]:
    found = []
    for link in Path("/proc/self/fd").glob("*"):
        try:
            found.append(str(link.readlink()))
        except OSError:
            continue
    return found
