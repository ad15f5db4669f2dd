"""`TrainerService`, for operators."""

import asyncio
from typing import Any

from chassis.attempt.stage_worker import StageWorker
from finetuneflow.v1 import trainer_service_pb2 as pb
from finetuneflow.v1 import trainer_service_pb2_grpc


class TrainerServicer(trainer_service_pb2_grpc.TrainerServiceServicer):
    """Serves the state of this process's stage worker."""

    def __init__(self, worker: StageWorker) -> None:
        self._worker = worker
        self._draining: asyncio.Task[None] | None = None

    async def GetTrainer(self, request: pb.GetTrainerRequest, context: Any) -> pb.GetTrainerResponse:
        return pb.GetTrainerResponse(node=self._worker.node())

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        return pb.ListRunsResponse(runs=self._worker.runs())

    async def DrainTrainer(self, request: pb.DrainTrainerRequest, context: Any) -> pb.DrainTrainerResponse:
        """Starts a drain and returns at once. ListRuns shows the remaining runs; the process keeps running."""
        if self._draining is None:
            self._worker.begin_drain()
            self._draining = asyncio.create_task(self._worker.drain(), name="drain")
        return pb.DrainTrainerResponse(node=self._worker.node())
