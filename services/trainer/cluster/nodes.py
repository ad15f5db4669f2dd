"""The nodes of a Ray cluster, as a trainer sees them: whether a training can run there, and on what hardware."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format
from pydantic import BaseModel

from finetuneflow.v1.hardware_pb2 import Hardware

DISTRIBUTION: Final = "finetuneflow-server"
SAME: Final = (DISTRIBUTION, "torch", "transformers", "peft", "trl")
"""Distributions that need one version on all nodes: a training is spread over them, and may go on elsewhere."""


class Question(BaseModel):
    """Input of a survey of the cluster."""

    address: str
    """host:port of the cluster's head, or `auto`."""
    home: Path
    """Folder of the trainer, which every node must share."""
    models: dict[str, Path]
    """The operator's base models, which every node must have."""


class NodeFacts(BaseModel):
    """Facts that a node reports about itself."""

    id: str
    """Its id in the cluster."""
    address: str
    versions: dict[str, str]
    """Versions of the packages that must be equal on all nodes, by name."""
    found: str = ""
    """Content of the file that the trainer has written, as the node reads it; empty if it cannot."""
    missing_models: list[str] = []
    """Aliases of models that it does not have."""
    unconfined: list[str] = []
    """Limits of children that its kernel cannot enforce, as sentences."""
    hardware: dict[str, Any] = {}
    gpus: int
    """Number of GPUs that the cluster gives to its work."""


class Survey(BaseModel):
    """Result of a survey."""

    address: str = ""
    """host:port of the cluster's head."""
    nodes: list[NodeFacts] = []
    """Nodes with CPUs for the cluster's work."""
    problem: str = ""
    """Why no training can run, and what to change; empty if one can."""


def cluster_hardware(node_id: str, nodes: Sequence[NodeFacts], threads: int) -> Hardware:
    """Returns the hardware for which trainings are planned: any process may be placed on the weakest node.

    GPUs are those of all nodes, each as large as the smallest. `threads` is the number of CPUs of a process.
    """
    machines = [json_format.ParseDict(node.hardware, Hardware(), ignore_unknown_fields=True) for node in nodes]
    weakest = min(machines, key=lambda machine: machine.memory_total_bytes)
    merged = Hardware()
    merged.CopyFrom(weakest)
    merged.node_id, merged.cpu_cores = node_id, threads
    merged.memory_available_bytes = min(machine.memory_available_bytes for machine in machines)
    merged.disk_free_bytes = min(machine.disk_free_bytes for machine in machines)
    merged.cpu_features[:] = [
        name for name in weakest.cpu_features if all(name in each.cpu_features for each in machines)
    ]
    for name in list(merged.packages):
        if any(name not in machine.packages for machine in machines):
            del merged.packages[name]
    gpus = [
        gpu
        for node, machine in zip(nodes, machines, strict=True)
        if machine.cuda_available
        for gpu in list(machine.gpus)[: node.gpus]
    ]
    del merged.gpus[:]
    for index in range(len(gpus)):
        gpu = merged.gpus.add()
        gpu.CopyFrom(min(gpus, key=lambda each: each.memory_total_bytes))
        gpu.index, gpu.bf16 = index, all(each.bf16 for each in gpus)
        gpu.memory_free_bytes = min(each.memory_free_bytes for each in gpus)
        gpu.ClearField("temperature_celsius")
        gpu.ClearField("utilization")
    merged.cuda_available = bool(gpus)
    return merged


def problem_of(node: NodeFacts, content: str, answer: str, home: Path, versions: Mapping[str, str]) -> str:
    """Returns why no training can run on a node, and what to change; empty if one can.

    The trainer has written `content` into a file of its `home`, where it has read `answer` of the node; `versions` are
    its own.
    """
    where = f"node {node.address} of the Ray cluster"
    for name, here in versions.items():
        if (there := node.versions.get(name, "none")) != here:
            return f"{where} has {name} {there}, and this trainer {here}: install the same version"
    if node.found != content or answer != content:
        found = f" ({node.found})" if node.found and node.found != content else ""
        return (
            f"{where} does not share {home} with this trainer{found}: set FTF_TRAINER_HOME to a folder on storage that "
            "all nodes have under the same path, and which Ray's user can read and write"
        )
    if node.missing_models:
        missing = ", ".join(node.missing_models)
        return f"{where} does not have the models {missing} of FTF_MODELS: put them on storage that all nodes have"
    return ""
