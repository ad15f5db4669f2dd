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
    # A machine's probe tells what it has; the other processes on it are nodes without a machine of their own.
    machines = [hardware for hardware in fleet if hardware.cpu_cores]
    for hardware in machines:
        print_rows(here.console, ["NODE", hardware.node_id or "this machine"], _facts(hardware))
    others = [hardware.node_id for hardware in fleet if not hardware.cpu_cores]
    if others:
        here.console.print(f"Live beside {'it' if len(machines) == 1 else 'them'}: {', '.join(others)}")


def _facts(hardware: Hardware) -> Iterator[list[str]]:
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
