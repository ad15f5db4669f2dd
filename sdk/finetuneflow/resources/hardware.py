"""Machines."""

from __future__ import annotations

from dataclasses import dataclass

from finetuneflow.resources.convert import Resource


@dataclass(frozen=True, kw_only=True)
class Gpu(Resource):
    """One GPU."""

    index: int
    name: str
    memory_total_bytes: int
    memory_free_bytes: int
    compute_capability: str
    bf16: bool
    temperature_celsius: float | None
    utilization: float | None


@dataclass(frozen=True, kw_only=True)
class Hardware(Resource):
    """The machine of one node."""

    node_id: str
    cpu_model: str
    cpu_cores: int
    cpu_features: tuple[str, ...]
    memory_total_bytes: int
    memory_available_bytes: int
    disk_free_bytes: int
    gpus: tuple[Gpu, ...]
    driver_version: str
    cuda_version: str
    has_nvidia_smi: bool
    cuda_available: bool
    packages: dict[str, str]
    platform: str
    python_version: str
    draining: bool
