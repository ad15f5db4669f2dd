"""An evaluator: `python -m services.evaluator`."""

from chassis.attempt.stage_worker import StageWorker
from chassis.server.grpc_server import Mount
from finetuneflow.v1 import evaluator_service_pb2, evaluator_service_pb2_grpc
from finetuneflow.v1.work_pb2 import Node
from services import process
from services.attempt_inputs import catalogue
from services.evaluator.harness_tasks import HarnessTasks
from services.evaluator.residency import Residency
from services.evaluator.servicer import EvaluatorServicer
from services.evaluator.settings import EvaluatorSettings
from services.evaluator.stage import EvaluationStage


def main() -> None:
    settings = EvaluatorSettings.of_environment()
    models = catalogue(settings)
    tasks = HarnessTasks(settings.harness_tasks)

    def mount(worker: StageWorker) -> list[Mount]:
        residency = Residency(settings, models)
        tasks.read()

        def complete_node(node: Node) -> None:
            node.warm_models[:] = residency.warm_models()
            node.harness_tasks[:] = tasks.names

        worker.complete_node = complete_node
        return [
            Mount(
                evaluator_service_pb2.DESCRIPTOR.services_by_name["EvaluatorService"],
                evaluator_service_pb2_grpc.add_EvaluatorServiceServicer_to_server,
                EvaluatorServicer(residency),
            )
        ]

    process.run(settings, EvaluationStage(settings, models, tasks), mount)


if __name__ == "__main__":
    main()
