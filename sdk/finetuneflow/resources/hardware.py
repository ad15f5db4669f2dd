"""Hardware of nodes."""

from __future__ import annotations

from dataclasses import dataclass

from finetuneflow.resources.convert import Resource


@dataclass(frozen=True, kw_only=True)
class Gpu(Resource):
    """A GPU of a node."""

    index: int
    """Index of the GPU on the node."""
    name: str
    """Name of the GPU."""
    memory_total_bytes: int
    """Total memory in bytes."""
    memory_free_bytes: int
    """Free memory in bytes."""
    compute_capability: str
    """Compute capability, such as 9.0."""
    bf16: bool
    """True for compute capability 8.0 and higher, which supports bf16."""
    temperature_celsius: float | None
    """Temperature in degrees Celsius. None if unknown."""
    utilization: float | None
    """Fraction of recent time during which a kernel ran, in [0, 1]. None if unknown."""
    memory_own_bytes: int
    """Memory in bytes that the node's attempts occupy; 0 also if it cannot be told."""


@dataclass(frozen=True, kw_only=True)
class Hardware(Resource):
    """The machine of a node, as its process sees it. Values that cannot be read are empty or None, never guessed."""

    node_id: str
    """Id of the node."""
    cpu_model: str
    """Name of the processor."""
    cpu_cores: int
    """Number of cores available to the process."""
    cpu_features: tuple[str, ...]
    """Instruction sets relevant to training, such as avx512_bf16 or amx_bf16."""
    memory_total_bytes: int
    """Total memory in bytes: that of the machine or the container's limit."""
    memory_available_bytes: int
    """Available memory in bytes."""
    disk_free_bytes: int
    """Free disk space in bytes, where checkpoints are written."""
    gpus: tuple[Gpu, ...]
    """GPUs that the process may use; a job gets the first ones. Empty on a machine without GPUs."""
    driver_version: str
    """Version of the NVIDIA driver, such as 580.65.06. Empty without a driver."""
    cuda_version: str
    """Latest CUDA version that the driver supports. Empty without a driver."""
    has_nvidia_smi: bool
    """True if nvidia-smi was found."""
    cuda_available: bool
    """True if the installed torch can use a GPU of this node."""
    packages: dict[str, str]
    """Installed versions of torch, transformers, peft, trl, bitsandbytes, datasets and accelerate."""
    platform: str
    """Operating system and version."""
    python_version: str
    """Version of Python."""
    draining: bool
    """True if the node takes no new work because it was drained. Set by the gateway."""
    harness_tasks: tuple[str, ...]
    """Tasks of lm-evaluation-harness that the node, an evaluator, can run. Set by the gateway."""
    gguf_types: tuple[str, ...]
    """Types of GGUF files that the node, an exporter, can make. Set by the gateway."""
    memory_own_bytes: int
    """Memory in bytes that the node's attempts occupy, which is available once they end."""
