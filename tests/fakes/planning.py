"""Planning without machines, for tests that are about something else."""

from finetuneflow.v1.estimate_pb2 import ObservedSpeed
from finetuneflow.v1.hardware_pb2 import Hardware


class NoTrainers:
    """Stands in for PlanningTargets: no trainer is up, so probes plan for their own machine, and none was before."""

    async def observed(self) -> list[ObservedSpeed]:
        return []

    async def that_trains(self, pool: str, processes: int = 1) -> Hardware | None:
        return None
