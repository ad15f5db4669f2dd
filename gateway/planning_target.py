"""Completes requests to a probe: the machine that a training would run on, and measured speeds."""

from collections.abc import Iterable

from chassis.errors import NotFound
from engine.estimate.machine import deciding_gpu
from finetuneflow.v1 import probe_service_pb2 as api
from finetuneflow.v1.estimate_pb2 import ObservedSpeed
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from finetuneflow.v1.hardware_pb2 import Hardware
from finetuneflow.v1.work_pb2 import Node
from gateway.observed_speeds import ObservedSpeeds
from gateway.passthrough import Passthrough

Asked = api.RecommendMethodRequest | api.EstimateResourcesRequest | api.PreflightFineTuningJobRequest


class PlanningTargets:
    """Provides the hardware and the speeds that a probe lacks: it knows its own machine only, and no jobs."""

    def __init__(self, passthrough: Passthrough, speeds: ObservedSpeeds) -> None:
        self._passthrough = passthrough
        self._speeds = speeds

    async def fill_in(self, request: Asked) -> None:
        """Sets observed speeds and hardware in the request.

        The hardware is that of the named node, or of the trainer with the most free memory in the spec's pool (in any
        pool if none of it runs). It is not set if the request names a machine of its own or no node reports one.
        Raises NotFound for an unknown node.
        """
        if not request.observed:
            request.observed.extend(await self.observed())
        pool, processes = request.spec.resources.pool or "default", num_processes(request.spec)
        if isinstance(request, api.PreflightFineTuningJobRequest):
            if not request.HasField("hardware") and not request.node_id:
                _set_hardware(request, await self.that_trains(pool, processes))
                return
        elif request.HasField("memory_bytes"):
            return
        if request.HasField("hardware"):
            return
        nodes = await self._passthrough.nodes()
        if request.node_id:
            nodes = [node for node in nodes if node.id == request.node_id]
            if not nodes:
                raise no_node(request.node_id)
        else:
            nodes = _trainers(nodes, pool)
        _set_hardware(request, _with_most_free_memory(map(hardware_of, nodes), processes))

    async def observed(self) -> list[ObservedSpeed]:
        """Returns the speeds of the latest trainings, newest first."""
        return await self._speeds.latest()

    async def that_trains(self, pool: str, processes: int = 1) -> Hardware | None:
        """Returns the machine for which a job of the pool is planned: the trainer with the most memory once it is idle,
        of those with a GPU for each of its processes if there are any.

        None if no trainer runs. Raises Unavailable.
        """
        return _with_most_free_memory(map(_when_idle, _trainers(await self._passthrough.nodes(), pool)), processes)


def num_processes(spec: FineTuningJobSpec) -> int:
    """Returns the number of processes that a job asks for."""
    return max(spec.resources.world_size, spec.resources.gpus, 1)


def no_node(node_id: str) -> NotFound:
    return NotFound("NODE_NOT_FOUND", f"there is no live node {node_id!r}", metadata={"node_id": node_id})


def hardware_of(node: Node) -> Hardware:
    """Returns the hardware that a node reports; only its id if it reports none."""
    hardware = Hardware()
    hardware.CopyFrom(node.hardware)
    hardware.node_id = node.id
    hardware.draining = node.draining
    hardware.harness_tasks[:] = node.harness_tasks
    hardware.gguf_types[:] = node.gguf_types
    return hardware


def _trainers(nodes: Iterable[Node], pool: str) -> list[Node]:
    """Returns the trainers of a pool, or all trainers if none of that pool runs."""
    trainers = [node for node in nodes if node.service == "trainer"]
    return [node for node in trainers if node.pool == pool] or trainers


def _when_idle(node: Node) -> Hardware:
    """Returns the node's hardware as if it were idle: what its own attempts occupy is free.

    Where that cannot be told of a node that runs something, all memory counts as free.
    """
    hardware, is_busy = hardware_of(node), bool(node.runs)

    def free(now: int, own: int, total: int) -> int:
        return total if is_busy and not own else min(now + own, total)

    hardware.memory_available_bytes = free(
        hardware.memory_available_bytes, hardware.memory_own_bytes, hardware.memory_total_bytes
    )
    for gpu in hardware.gpus:
        gpu.memory_free_bytes = free(gpu.memory_free_bytes, gpu.memory_own_bytes, gpu.memory_total_bytes)
    return hardware


def _with_most_free_memory(machines: Iterable[Hardware], processes: int) -> Hardware | None:
    known = (machine for machine in machines if machine.memory_total_bytes)
    return max(known, key=lambda machine: _free_memory_key(machine, processes), default=None)


def _set_hardware(request: Asked, hardware: Hardware | None) -> None:
    if hardware is not None:
        request.hardware.CopyFrom(hardware)


def _free_memory_key(hardware: Hardware, processes: int) -> tuple[bool, bool, int]:
    """Sort key: machines with a usable GPU for each process first, then those with any, then by free memory."""
    gpu = deciding_gpu(hardware, processes)
    if gpu is None:
        return False, False, hardware.memory_available_bytes
    return len(hardware.gpus) >= processes, True, gpu.memory_free_bytes
