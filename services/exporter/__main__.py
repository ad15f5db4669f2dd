"""An exporter: `python -m services.exporter`."""

from chassis.attempt.stage_worker import StageWorker
from chassis.server.grpc_server import Mount
from finetuneflow.v1 import exporter_service_pb2, exporter_service_pb2_grpc
from finetuneflow.v1.work_pb2 import Node
from services import process
from services.attempt_inputs import catalogue
from services.exporter.gguf_types import GgufTypes
from services.exporter.servicer import ExporterServicer
from services.exporter.settings import ExporterSettings
from services.exporter.stage import ExportStage


def main() -> None:
    settings = ExporterSettings.of_environment()
    gguf_types = GgufTypes(settings.libllama)

    def mount(worker: StageWorker) -> list[Mount]:
        gguf_types.read()

        def complete_node(node: Node) -> None:
            node.gguf_types[:] = gguf_types.names

        worker.complete_node = complete_node
        return [
            Mount(
                exporter_service_pb2.DESCRIPTOR.services_by_name["ExporterService"],
                exporter_service_pb2_grpc.add_ExporterServiceServicer_to_server,
                ExporterServicer(worker),
            )
        ]

    process.run(settings, ExportStage(settings, catalogue(settings), gguf_types), mount)


if __name__ == "__main__":
    main()
