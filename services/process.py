"""Start, work and shutdown of a service's process, shared by all four."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from chassis.attempt.stage import Stage
from chassis.attempt.stage_worker import StageWorker
from chassis.attempt.time_limits import TimeLimits
from chassis.bus import subjects
from chassis.bus.event_bus import Bus
from chassis.bus.node_heartbeat import NodeHeartbeat
from chassis.bus.permissions import user_name
from chassis.security import confinement
from chassis.server.gauges import serve_gauges
from chassis.server.grpc_server import Mount, serve
from chassis.server.peer_identity import PeerInterceptor
from chassis.store.artifact_store import ArtifactStore
from chassis.telemetry import configure_logging
from finetuneflow.v1.hardware_pb2 import Hardware
from services.hardware import read_hardware
from services.settings import ServiceSettings

_log = logging.getLogger(__name__)

_HARDWARE_SECONDS: Final = 30.0
"""Interval at which a node measures its free memory and disk."""
_ANNOUNCED_SECONDS: Final = 5.0
"""Time after which a process is healthy although no gateway knows of it."""


def run(
    settings: ServiceSettings,
    stage: Stage,
    mount: Callable[[StageWorker], Sequence[Mount]],
    measure: Callable[[], Hardware] | None = None,
) -> NoReturn:
    """Serves and works until SIGTERM or SIGINT, then drains; a second signal kills running children.

    Exits with status 1 if the port is taken or if pulling work fails: its process manager starts it again. Exits with
    status 1 as well if children must be confined and this kernel cannot do it.

    `measure` returns the hardware of the node, by default that of this machine; it runs in a thread.
    """
    if settings.identity is None and not settings.insecure:
        prefix = f"FTF_{settings.service.upper()}"
        sys.exit(
            f"Anybody who reaches its port could call this service. Set {prefix}_SERVICE_CERT, {prefix}_SERVICE_KEY "
            f"and {prefix}_SERVICE_CA (python -m chassis.security.certificates makes the files), or "
            f"{prefix}_INSECURE=true on a closed network."
        )
    configure_logging(settings.service, settings.log_level, as_json=settings.log_json)
    confinement.hide_from_children()
    for lack in (lacks := confinement.missing()):
        _log.warning("%s", lack)
    if lacks and settings.child_confinement == "required":
        sys.exit(f"{settings.service}: children cannot be confined, and FTF_CHILD_CONFINEMENT is `required`.")
    if settings.hub_token.get_secret_value() and not settings.hub_token_repositories:
        _log.warning(
            "FTF_HUB_TOKEN is used for nothing: list the models and datasets that all callers may use in "
            'FTF_HUB_TOKEN_REPOSITORIES, such as ["org/name", "org/*"], or ["*"] for all that its account can read'
        )
    serve_gauges(settings.metrics)
    status = 0
    try:
        asyncio.Runner().run(_serve(settings, stage, mount, measure or _this_machine(settings)))
    except Exception:  # noqa: BLE001 - it ends the process
        traceback.print_exc()
        status = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Python would wait for threads of downloads that are no longer needed.
    os._exit(status)


def _this_machine(settings: ServiceSettings) -> Callable[[], Hardware]:
    return lambda: read_hardware(settings.node_id, settings.home)


async def _serve(
    settings: ServiceSettings,
    stage: Stage,
    mount: Callable[[StageWorker], Sequence[Mount]],
    measure: Callable[[], Hardware],
) -> None:
    stop, again = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, lambda: (again if stop.is_set() else stop).set())
    password = settings.nats_password.get_secret_value()
    inbox = subjects.inbox(user_name(settings.service, settings.pool))
    identity = settings.identity
    if identity is None:
        _log.warning("FTF_INSECURE: whoever reaches the port of this service may call it")
    tls = identity.client_context() if identity else None
    bus = await Bus.connect(settings.nats_url, settings.nats_user, password, settings.node_id, inbox=inbox, tls=tls)
    worker = StageWorker(bus, ArtifactStore(settings.artifacts), stage, settings, TimeLimits())
    worker.hardware = await asyncio.to_thread(measure)
    # The port comes first: a second process on it must end before it takes work.
    if identity is None:
        server = await serve(*mount(worker), listen=settings.listen, serving=False)
    else:
        server = await serve(
            *mount(worker),
            listen=settings.listen,
            interceptors=[PeerInterceptor()],
            credentials=identity.server_credentials(),
            serving=False,
        )
    worker.address = settings.advertise or server.address
    heartbeat = NodeHeartbeat(bus, worker.node)
    await worker.start()
    heartbeat.start()
    _log.info("%s listens on %s", settings.node_id, server.address)

    async def report_serving() -> None:
        # Whoever waits for this process may ask a gateway for it at once. It serves without a gateway, too.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ANNOUNCED_SECONDS):
                await heartbeat.announced.wait()
        await server.set_serving(not worker.draining)

    async def announce_drain() -> None:
        await worker.drain_began.wait()
        _log.info("draining")
        await server.set_serving(False)
        await heartbeat.announce()

    async def kill_on_second_signal() -> None:
        await again.wait()
        _log.warning("second signal: running children are killed")
        worker.hurry()

    async def refresh_hardware() -> None:
        while True:
            await asyncio.sleep(_HARDWARE_SECONDS)
            worker.hardware = await asyncio.to_thread(measure)

    tasks = (report_serving, announce_drain, kill_on_second_signal, refresh_hardware)
    beside = [asyncio.create_task(each()) for each in tasks]
    try:
        stopped, pulling = asyncio.create_task(stop.wait()), asyncio.create_task(worker.wait())
        await asyncio.wait({stopped, pulling}, return_when=asyncio.FIRST_COMPLETED)
        if pulling.done():
            pulling.result()
        await stopped
        await worker.stop()
    finally:
        for task in beside:
            task.cancel()
        await heartbeat.stop()
        await server.stop()
        await bus.close()
