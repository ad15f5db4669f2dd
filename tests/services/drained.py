"""A trainer whose stage starts the torch-free child: `python -m tests.services.drained`."""

from chassis.attempt.stage_worker import StageWorker
from chassis.server.grpc_server import Mount
from finetuneflow.v1 import trainer_service_pb2, trainer_service_pb2_grpc
from services import process
from services.trainer.servicer import TrainerServicer
from services.trainer.settings import TrainerSettings
from tests.chassis.peers import ChildStage


def _mount(worker: StageWorker) -> list[Mount]:
    return [
        Mount(
            trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"],
            trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server,
            TrainerServicer(worker),
        )
    ]


if __name__ == "__main__":
    process.run(TrainerSettings(), ChildStage(), _mount)
