"""Tokens per second of the device at its peak, for model FLOPs utilisation (MFU, arXiv 2204.02311, app. B)."""

from statistics import fmean

import torch
from datasets import Dataset

from engine.estimate.architecture import Architecture
from engine.estimate.duration import flops_per_token
from engine.estimate.machine import gpu_machine
from engine.estimate.memory import Setup
from engine.model.load import Device
from services.trainer.worker.child_input import TrainingInput
from services.trainer.worker.order import lengths


def peak_tokens_per_second(child_input: TrainingInput, on: Device, rows: Dataset) -> float | None:
    """Returns the tokens per second at which the device would compute at its peak; None if the peak is unknown: on a
    CPU, a GPU that is not in the table, or with fp32, whose peak is another one.

    Counts the operations that the model needs; recomputation for gradient checkpointing is none of them.
    """
    config = child_input.config
    if on == "cpu" or config.hyperparameters.precision == "fp32":
        return None
    machine = gpu_machine(torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0])
    if not machine.known:
        return None
    hyper = config.hyperparameters
    length = hyper.max_length if hyper.streaming else max(round(fmean(lengths(rows))), 1)
    setup = Setup.of(config, on_gpu=True, length=length, checkpointing=False)
    return machine.peak_flops / flops_per_token(Architecture.of_folder(child_input.model.path), setup)
