"""A trainer: `python -m services.trainer`."""

from chassis.attempt.stage_worker import StageWorker
from chassis.server.grpc_server import Mount
from finetuneflow.v1 import trainer_service_pb2, trainer_service_pb2_grpc
from services import process
from services.attempt_inputs import catalogue
from services.trainer.servicer import TrainerServicer
from services.trainer.settings import TrainerSettings
from services.trainer.stage import TrainingStage


def main() -> None:
    settings = TrainerSettings.of_environment()

    def mount(worker: StageWorker) -> list[Mount]:
        return [
            Mount(
                trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"],
                trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server,
                TrainerServicer(worker),
            )
        ]

    process.run(settings, TrainingStage(settings, catalogue(settings)), mount)


if __name__ == "__main__":
    main()
