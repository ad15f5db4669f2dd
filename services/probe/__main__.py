"""A probe: `python -m services.probe`."""

from chassis.server import Mount
from chassis.stage_worker import StageWorker
from finetuneflow.v1 import probe_service_pb2, probe_service_pb2_grpc
from services import process
from services.inputs import catalogue
from services.probe.servicer import ProbeServicer
from services.probe.settings import ProbeSettings
from services.probe.stage import PreflightStage


def main() -> None:
    settings = ProbeSettings()

    def mount(worker: StageWorker) -> Mount:
        return Mount(
            probe_service_pb2.DESCRIPTOR.services_by_name["ProbeService"],
            probe_service_pb2_grpc.add_ProbeServiceServicer_to_server,
            ProbeServicer(settings),
        )

    process.run(settings, PreflightStage(settings, catalogue(settings)), mount)


if __name__ == "__main__":
    main()
