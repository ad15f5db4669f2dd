"""A delivery process: `python -m gateway.deliveries`."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from sqlalchemy.exc import DBAPIError

from chassis.bus import subjects
from chassis.bus.event_bus import Bus
from chassis.bus.permissions import GATEWAY
from chassis.security.confinement import hide_from_children
from chassis.server.gauges import serve_gauges
from chassis.server.grpc_server import serve
from chassis.store.artifact_store import ArtifactStore
from chassis.telemetry import configure_logging
from gateway.deliveries.deliverer import Deliverer
from gateway.deliveries.http_client import HttpClient
from gateway.deliveries.services import sink_maker
from gateway.deliveries.settings import DeliverySettings
from gateway.outbound_addresses import AddressPolicy
from gateway.secret_store import SecretStore, secret_keys
from gateway.sql.database import Database

_log = logging.getLogger(__name__)


async def run(settings: DeliverySettings) -> None:
    """Delivers until SIGTERM or SIGINT, or until its loop fails: then the process ends and is restarted."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        database = await Database.open(settings.database)
    except (OSError, DBAPIError, ValueError) as error:
        address = settings.database.render_as_string(hide_password=True)
        sys.exit(f"deliveries: the database {address} cannot be opened (FTF_GATEWAY_DATABASE_URL): {error}")
    keys = secret_keys(settings)
    try:
        await asyncio.to_thread(keys.fernet)
    except ValueError as error:
        sys.exit(f"deliveries: {error}")
    identity = settings.identity
    bus = await Bus.connect(
        settings.nats_url,
        settings.nats_user,
        settings.nats_password.get_secret_value(),
        f"{settings.node_id}-deliveries",
        inbox=subjects.inbox(GATEWAY),
        tls=identity.client_context() if identity else None,
    )
    http = HttpClient(AddressPolicy(settings.webhook_allow), settings.deliveries_timeout_seconds)
    deliverer = Deliverer(
        database,
        sink_maker(
            database,
            http,
            SecretStore(database, keys),
            ArtifactStore(settings.artifacts),
            settings.tensorboard_dir or settings.home / "tensorboard",
        ),
        settings.schedule,
        lease_seconds=settings.deliveries_lease_seconds,
        max_deliveries=settings.deliveries_max,
    )
    await bus.subscribe(subjects.event("*", "*"), lambda subject, _: deliverer.hint(subject.split(".")[3]))
    server = await serve(
        listen=settings.deliveries_listen, credentials=identity.server_credentials() if identity else None
    )
    _log.info("the delivery process listens on %s", server.address)
    delivering, stopped = asyncio.create_task(deliverer.run()), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([delivering, stopped], return_when=asyncio.FIRST_COMPLETED)
        if delivering.done():
            delivering.result()
    finally:
        for task in (delivering, stopped):
            task.cancel()
        await asyncio.wait([delivering, stopped])
        await server.stop()
        await http.close()
        await bus.close()
        await database.close()


def main() -> None:
    hide_from_children()
    settings = DeliverySettings.of_environment()
    configure_logging("deliveries", settings.log_level, as_json=settings.log_json)
    serve_gauges(settings.deliveries_metrics)
    asyncio.run(run(settings))


if __name__ == "__main__":
    main()
