"""A trainer: `python -m services.trainer`."""

import sys

from chassis.attempt.stage_worker import StageWorker
from chassis.server.grpc_server import Mount
from finetuneflow.v1 import trainer_service_pb2, trainer_service_pb2_grpc
from services import process
from services.attempt_inputs import catalogue
from services.trainer.ray_cluster import RayCluster
from services.trainer.servicer import TrainerServicer
from services.trainer.settings import TrainerSettings
from services.trainer.stage import TrainingStage


def main() -> None:
    settings = TrainerSettings.of_environment()
    cluster = RayCluster(settings) if settings.engine == "ray" else None
    if cluster and (problem := cluster.connect()):
        sys.exit(f"trainer: {problem}")

    def mount(worker: StageWorker) -> list[Mount]:
        if cluster:
            cluster.describe()
        return [
            Mount(
                trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"],
                trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server,
                TrainerServicer(worker),
            )
        ]

    stage = TrainingStage(settings, catalogue(settings), cluster=cluster)
    process.run(settings, stage, mount, cluster.hardware if cluster else None)


if __name__ == "__main__":
    main()
