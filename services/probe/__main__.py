"""Starts a probe: `python -m services.probe`."""

from chassis.attempt.stage_worker import StageWorker
from chassis.server.grpc_server import Mount
from finetuneflow.v1 import (
    dataset_service_pb2,
    dataset_service_pb2_grpc,
    probe_service_pb2,
    probe_service_pb2_grpc,
)
from services import process
from services.attempt_inputs import catalogue
from services.hub_access import every_callers_access
from services.probe.datasets import DatasetsServicer
from services.probe.estimates import Estimates
from services.probe.queries.query_runner import ServedQueries
from services.probe.servicer import ProbeServicer
from services.probe.settings import ProbeSettings
from services.probe.stage import PreflightStage


def main() -> None:
    settings = ProbeSettings.of_environment()
    models = catalogue(settings)
    estimates = Estimates(
        models,
        settings.home,
        node_id=settings.node_id,
        hub=every_callers_access(settings),
        prices=settings.prices,
    )

    def mount(worker: StageWorker) -> list[Mount]:
        queries = ServedQueries(settings, models)
        return [
            Mount(
                probe_service_pb2.DESCRIPTOR.services_by_name["ProbeService"],
                probe_service_pb2_grpc.add_ProbeServiceServicer_to_server,
                ProbeServicer(settings, estimates, queries),
            ),
            Mount(
                dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"],
                dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server,
                DatasetsServicer(queries),
            ),
        ]

    process.run(settings, PreflightStage(settings, models), mount)


if __name__ == "__main__":
    main()
