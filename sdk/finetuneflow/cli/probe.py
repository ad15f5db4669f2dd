"""`ftf probe`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from finetuneflow.cli.session import Json, print_json, print_rows, session, size
from finetuneflow.resources.hardware import Hardware


def probe(
    ctx: typer.Context,
    node: Annotated[str, typer.Option(help="Only this node.")] = "",
    json: Json = False,
) -> None:
    """Show the machines that jobs run on."""
    here = session(ctx)
    fleet = here.client.probe.hardware(node_id=node)
    if json:
        print_json(*(hardware.proto for hardware in fleet))
        return
    for hardware in fleet:
        print_rows(here.console, ["NODE", hardware.node_id or "this machine"], _facts(hardware))


def _facts(hardware: Hardware) -> Iterator[list[str]]:
    if not hardware.cpu_cores:
        yield ["Machine", "not reported by this node; the probe beside it reports it"]
        return
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
    if hardware.packages:
        yield ["Packages", ", ".join(f"{name} {version}" for name, version in sorted(hardware.packages.items()))]
