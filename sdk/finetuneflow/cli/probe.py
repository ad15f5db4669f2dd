"""`ftf probe`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from finetuneflow.cli.session import Json, print_json, print_rows, session, size
from finetuneflow.resources.hardware import Hardware


def probe(
    ctx: typer.Context,
    node: Annotated[str, typer.Option(help="Only this node.")] = "",
    json: Json = False,
) -> None:
    """Show the hardware of the nodes."""
    here = session(ctx)
    fleet = here.client.probe.hardware(node_id=node)
    if json:
        print_json(*(hardware.proto for hardware in fleet))
        return
    for nodes in _machines(fleet):
        tasks = sorted({task for node in nodes for task in node.harness_tasks})
        types = dict.fromkeys(type_ for node in nodes for type_ in node.gguf_types)
        rows = _facts(nodes[0], tasks, [*types])
        print_rows(here.console, ["NODES", ", ".join(map(_name, nodes)) or "this machine"], rows)


def _machines(fleet: Sequence[Hardware]) -> list[list[Hardware]]:
    """Groups the nodes by machine, because several nodes may run on one. The most detailed description is first."""
    machines: dict[tuple[object, ...], list[Hardware]] = {}
    for node in fleet:
        # By default a node's id is its service, its host and four digits.
        host = node.node_id.partition("-")[2].rpartition("-")[0] or node.node_id
        machines.setdefault((host, node.cpu_model, node.memory_total_bytes), []).append(node)
    return [sorted(nodes, key=lambda node: -len(node.packages)) for nodes in machines.values()]


def _name(node: Hardware) -> str:
    return f"{node.node_id} (draining: takes no work)" if node.draining else node.node_id


def _facts(hardware: Hardware, harness_tasks: Sequence[str], gguf_types: Sequence[str]) -> Iterator[list[str]]:
    features = f" ({', '.join(hardware.cpu_features)})" if hardware.cpu_features else ""
    yield ["CPU", f"{hardware.cpu_model}, {hardware.cpu_cores} cores{features}"]
    yield ["Memory", f"{size(hardware.memory_available_bytes)} free of {size(hardware.memory_total_bytes)}"]
    yield ["Disk", f"{size(hardware.disk_free_bytes)} free"]
    for gpu in hardware.gpus:
        memory = f"{size(gpu.memory_free_bytes)} free of {size(gpu.memory_total_bytes)}"
        yield [f"GPU {gpu.index}", f"{gpu.name}, {memory}, compute {gpu.compute_capability}"]
    if not hardware.gpus:
        yield ["GPU", "none"]
    if hardware.driver_version:
        yield ["Driver", f"{hardware.driver_version}, CUDA {hardware.cuda_version}"]
    yield ["System", f"{hardware.platform}, Python {hardware.python_version}"]
    if harness_tasks:
        yield ["Harness tasks", ", ".join(harness_tasks)]
    if gguf_types:
        yield ["GGUF types", ", ".join(gguf_types)]
    if hardware.packages:
        yield ["Packages", ", ".join(f"{name} {version}" for name, version in sorted(hardware.packages.items()))]
