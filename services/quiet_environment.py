"""Environment of a child that loads models: no hub, no progress bars."""

import logging
import os


def quiet_environment() -> None:
    """Sets what libraries read when they are imported. Call it before the first import of one."""
    # Everything needed is on disk; peft and transformers would ask the hub about the base model's name, and trl would
    # tell it of the training, from a thread whose look at the environment crashes while accelerate empties that.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # It tells to install a package that fetches code from the hub, and without which everything works.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # Bars on stderr would push the lines that matter out of the last ones that a failure reports.
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
