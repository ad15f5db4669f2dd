"""Planning without machines, for tests that are about something else."""

from finetuneflow.v1.hardware_pb2 import Hardware


class NoTrainers:
    """Stands in for PlanningTargets: no trainer is up, so probes plan for their own machine."""

    async def that_trains(self, pool: str, processes: int = 1) -> Hardware | None:
        return None
