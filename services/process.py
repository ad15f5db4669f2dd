"""The life of a service's process: the same for all four."""

import asyncio
import logging
import signal
from collections.abc import Callable

from chassis.artifacts import ArtifactStore
from chassis.attempt import Stage
from chassis.bus import Bus
from chassis.gauges import serve_gauges
from chassis.node import NodeHeartbeat
from chassis.server import Mount, serve
from chassis.stage_worker import StageWorker
from chassis.telemetry import configure_logging
from finetuneflow.v1.hardware_pb2 import Hardware
from services.settings import ServiceSettings

_log = logging.getLogger(__name__)


def run(
    settings: ServiceSettings,
    stage: Stage,
    mount: Callable[[StageWorker], Mount],
    hardware: Hardware | None = None,
) -> None:
    """Serves and works until SIGTERM or SIGINT, then drains. OSError when the port is taken, and whatever ends the
    pulling of work: whoever keeps this process starts it again."""
    configure_logging(settings.service, settings.log_level, as_json=settings.log_json)
    serve_gauges(settings.metrics)
    asyncio.run(_live(settings, stage, mount, hardware))


async def _live(
    settings: ServiceSettings, stage: Stage, mount: Callable[[StageWorker], Mount], hardware: Hardware | None
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    password = settings.nats_password.get_secret_value()
    bus = await Bus.connect(settings.nats_url, settings.nats_user, password, settings.node_id)
    worker = StageWorker(bus, ArtifactStore(settings.artifacts), stage, settings, hardware)
    # The port first: a second process on it must end before it takes work.
    server = await serve(mount(worker), listen=settings.listen)
    worker.address = settings.advertise or server.address
    heartbeat = NodeHeartbeat(bus, worker.node)
    await worker.start()
    heartbeat.start()
    _log.info("%s listens on %s", settings.node_id, server.address)
    try:
        stopped, pulling = asyncio.create_task(stop.wait()), asyncio.create_task(worker.wait())
        await asyncio.wait({stopped, pulling}, return_when=asyncio.FIRST_COMPLETED)
        if pulling.done():
            pulling.result()
        await stopped
        _log.info("draining")
        await server.set_serving(False)
        await worker.stop()
    finally:
        await heartbeat.stop()
        await server.stop()
        await bus.close()
