"""Loads the model of a resident child."""

from typing import Any

import torch

from engine.model import load
from services.evaluator.resident.messages import ResidentInput


def load_resident(child_input: ResidentInput) -> Any:
    """Returns the model in the format in which the evaluation of a job measures it: float32 on a CPU and where a GPU
    has memory for it, otherwise 16 bits. Raises what `load_base` raises."""
    torch.set_num_threads(child_input.threads)
    on = load.device()
    dtype = torch.float32
    if on == "cuda" and child_input.quantization is None and not _fits_in_float32(child_input.model.num_parameters):
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return load.load_base(child_input.weights_dir, dtype=dtype, on=on, quantization=child_input.quantization)


def _fits_in_float32(num_parameters: int) -> bool:
    """Returns True if four-byte weights leave a third of the GPU's free memory for the computation."""
    free: int = torch.cuda.mem_get_info()[0]
    return 4 * num_parameters * 1.5 < free
