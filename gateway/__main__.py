"""A gateway: `python -m gateway`."""

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence

from google.protobuf.descriptor import ServiceDescriptor
from sqlalchemy.exc import DBAPIError

from chassis.bus import subjects
from chassis.bus.event_bus import Bus
from chassis.bus.permissions import GATEWAY
from chassis.security.confinement import hide_from_children
from chassis.security.identity import server_credentials
from chassis.server.allocation import collect_rarely, reuse_freed_memory
from chassis.server.gauges import serve_gauges
from chassis.server.grpc_server import Mount, serve
from chassis.store.artifact_store import ArtifactStore
from chassis.telemetry import configure_logging
from engine.catalogue import Catalogue
from finetuneflow.connection import is_loopback
from finetuneflow.v1 import (
    artifact_service_pb2,
    audit_service_pb2,
    audit_service_pb2_grpc,
    dataset_service_pb2,
    evaluation_service_pb2,
    evaluator_service_pb2,
    evaluator_service_pb2_grpc,
    export_service_pb2,
    fine_tuning_service_pb2,
    integration_service_pb2,
    integration_service_pb2_grpc,
    key_service_pb2,
    key_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    probe_service_pb2,
    probe_service_pb2_grpc,
    recipe_service_pb2,
    recipe_service_pb2_grpc,
    secret_service_pb2,
    secret_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
)
from finetuneflow.v1.work_pb2 import ClaimRequest, ReportRequest
from gateway.access.audit import AuditLog
from gateway.access.authentication import Authenticator
from gateway.access.call_limits import CallLimitInterceptor
from gateway.access.identity_provider import IdentityProvider, ProviderSettings
from gateway.access.interceptor import AccessInterceptor, OpenInterceptor
from gateway.access.keys import register_first_key
from gateway.observed_speeds import ObservedSpeeds
from gateway.outbound_addresses import AddressPolicy
from gateway.passthrough import Passthrough
from gateway.planning_target import PlanningTargets
from gateway.preflights import Preflights
from gateway.quotas import Quotas
from gateway.secret_store import SecretStore, secret_keys
from gateway.servicers import artifacts, datasets, fine_tuning, results
from gateway.servicers.audit import Audit
from gateway.servicers.generation import Generation
from gateway.servicers.integrations import Integrations
from gateway.servicers.keys import Keys
from gateway.servicers.models import Models
from gateway.servicers.probe import Probe
from gateway.servicers.recipes import Recipes
from gateway.servicers.secrets import Secrets
from gateway.servicers.tenants import Tenants
from gateway.servicers.work import WorkMethods
from gateway.settings import GatewaySettings
from gateway.sql.database import Database
from gateway.uploads import UploadLimits, sweep_for_ever
from gateway.watch.fanout import Fanout
from gateway.work.dispatch import Dispatcher
from gateway.work.kinds import EVALUATION, EXPORT, FINE_TUNING_JOB
from gateway.work.leases import LeaseWatch
from gateway.work.ledger import Ledger
from gateway.work.retention import Discarder
from gateway.work.worker_requests import WorkerRequests

log = logging.getLogger(__name__)

_QUEUE = "gateways"


async def run(settings: GatewaySettings) -> None:
    """Serves until SIGTERM or SIGINT, or until one of its loops fails: then the process ends and is restarted."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        database = await Database.open(settings.database)
    except (OSError, DBAPIError, ValueError) as error:
        address = settings.database.render_as_string(hide_password=True)
        sys.exit(f"gateway: the database {address} cannot be opened (FTF_GATEWAY_DATABASE_URL): {error}")
    keys = secret_keys(settings)
    try:
        if settings.operator_key_file is not None:
            await register_first_key(database, settings.operator_key_file)
        # Found now, not when the first caller sets a secret.
        await asyncio.to_thread(keys.fernet)
    except ValueError as error:
        sys.exit(f"gateway: {error}")
    authenticator = Authenticator(
        database, _identity_provider(settings), failures_per_minute=settings.auth_failures_per_minute
    )
    quotas = Quotas(settings.tenant_limits)
    secrets = SecretStore(database, keys, quotas)
    if lost := await secrets.count_undecryptable():
        log.error(
            "no key decrypts %d secrets: restore %s and start again, or have their tenants set them again",
            lost,
            keys.file,
        )
    store = ArtifactStore(settings.artifacts)
    catalogue = Catalogue(settings.home, settings.models)
    # Its own frames are in its rings already.
    bus = await Bus.connect(
        settings.nats_url,
        settings.nats_user,
        settings.nats_password.get_secret_value(),
        settings.node_id,
        inbox=subjects.inbox(GATEWAY),
        echo=False,
        tls=settings.identity.client_context() if settings.identity else None,
    )
    fanout = Fanout(database, bus)
    dispatcher = Dispatcher(database, bus)
    ledger = Ledger(database, fanout.publish, dispatcher.offer, Discarder(store).discard)
    passthrough = Passthrough(bus, settings.identity)
    machines = PlanningTargets(passthrough, ObservedSpeeds(database))
    requests = WorkerRequests(ledger, machines, secrets)
    leases = LeaseWatch(database, bus, requests, settings.lease_seconds)
    addresses = AddressPolicy(settings.webhook_allow)
    preflights = Preflights(database, passthrough, machines, catalogue, addresses, secrets)

    await fanout.start()
    await bus.serve(subjects.claim("*", "*"), _QUEUE, _claims(requests))
    await bus.serve(subjects.report("*"), _QUEUE, _reports(requests))
    mounts = [
        Mount(
            fine_tuning_service_pb2.DESCRIPTOR.services_by_name["FineTuningService"],
            fine_tuning.add_to_server,
            fine_tuning.FineTuning(
                WorkMethods(FINE_TUNING_JOB, ledger, fanout, store, quotas),
                catalogue,
                preflights,
                passthrough.nodes,
                addresses,
                secrets,
            ),
        ),
        Mount(
            dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"],
            datasets.add_to_server,
            datasets.Datasets(
                database,
                store,
                UploadLimits(settings.max_dataset_bytes, stall_seconds=settings.upload_stall_seconds),
                passthrough,
                quotas,
            ),
        ),
        Mount(
            artifact_service_pb2.DESCRIPTOR.services_by_name["ArtifactService"],
            artifacts.add_to_server,
            artifacts.Artifacts(database, store),
        ),
        Mount(
            evaluation_service_pb2.DESCRIPTOR.services_by_name["EvaluationService"],
            results.add_evaluations_to_server,
            results.Evaluations(
                WorkMethods(EVALUATION, ledger, fanout, store, quotas), catalogue, store, passthrough.nodes
            ),
        ),
        Mount(
            export_service_pb2.DESCRIPTOR.services_by_name["ExportService"],
            results.add_exports_to_server,
            results.Exports(WorkMethods(EXPORT, ledger, fanout, store, quotas), catalogue, passthrough.nodes),
        ),
        Mount(
            model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
            model_service_pb2_grpc.add_ModelServiceServicer_to_server,
            Models(database, catalogue),
        ),
        Mount(
            recipe_service_pb2.DESCRIPTOR.services_by_name["RecipeService"],
            recipe_service_pb2_grpc.add_RecipeServiceServicer_to_server,
            Recipes(),
        ),
        Mount(
            probe_service_pb2.DESCRIPTOR.services_by_name["ProbeService"],
            probe_service_pb2_grpc.add_ProbeServiceServicer_to_server,
            Probe(passthrough, machines, preflights),
        ),
        Mount(
            evaluator_service_pb2.DESCRIPTOR.services_by_name["EvaluatorService"],
            evaluator_service_pb2_grpc.add_EvaluatorServiceServicer_to_server,
            Generation(database, catalogue, passthrough),
        ),
        Mount(
            key_service_pb2.DESCRIPTOR.services_by_name["KeyService"],
            key_service_pb2_grpc.add_KeyServiceServicer_to_server,
            Keys(database, quotas),
        ),
        Mount(
            tenant_service_pb2.DESCRIPTOR.services_by_name["TenantService"],
            tenant_service_pb2_grpc.add_TenantServiceServicer_to_server,
            Tenants(database),
        ),
        Mount(
            secret_service_pb2.DESCRIPTOR.services_by_name["SecretService"],
            secret_service_pb2_grpc.add_SecretServiceServicer_to_server,
            Secrets(database, secrets),
        ),
        Mount(
            integration_service_pb2.DESCRIPTOR.services_by_name["IntegrationService"],
            integration_service_pb2_grpc.add_IntegrationServiceServicer_to_server,
            Integrations(database, addresses, secrets),
        ),
        Mount(
            audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"],
            audit_service_pb2_grpc.add_AuditServiceServicer_to_server,
            Audit(database),
        ),
    ]
    access = _access(settings, [mount.descriptor for mount in mounts], authenticator, AuditLog(database))
    credentials = None
    if settings.tls_cert and settings.tls_key:
        credentials = server_credentials(settings.tls_cert, settings.tls_key)
    server = await serve(
        *mounts,
        listen=settings.listen,
        interceptors=[access, CallLimitInterceptor(settings.call_limits)],
        credentials=credentials,
        options=settings.grpc_options,
    )
    collect_rarely()
    log.info("gateway %s listens on %s", settings.node_id, server.address)
    loops = [
        asyncio.create_task(loop)
        for loop in (fanout.run(), dispatcher.run(), leases.run(), sweep_for_ever(store), authenticator.run())
    ]
    stopped = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([*loops, stopped], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopped}:
            task.result()
    finally:
        fanout.end()
        await server.stop()
        for task in (*loops, stopped):
            task.cancel()
        await asyncio.wait([*loops, stopped])
        await bus.close()
        await database.close()


def _identity_provider(settings: GatewaySettings) -> IdentityProvider | None:
    if not settings.oidc_issuer:
        return None
    return IdentityProvider(
        ProviderSettings(
            settings.oidc_issuer,
            settings.oidc_audience,
            settings.oidc_algorithms,
            settings.oidc_tenant_claim,
            settings.oidc_role_claim,
        )
    )


def _access(
    settings: GatewaySettings, services: Sequence[ServiceDescriptor], authenticator: Authenticator, audit: AuditLog
) -> AccessInterceptor | OpenInterceptor:
    if settings.insecure:
        log.warning("FTF_INSECURE: no keys are asked for; whoever reaches %s is an operator", settings.listen)
        return OpenInterceptor()
    return AccessInterceptor(services, authenticator, audit, open_reflection=is_loopback(settings.listen))


def _claims(requests: WorkerRequests) -> Callable[[str, bytes], Awaitable[bytes]]:
    async def answer(subject: str, data: bytes) -> bytes:
        # The broker lets each user claim on the subject of its own service and pool only.
        return (await requests.claim(ClaimRequest.FromString(data), subjects.claimant(subject))).SerializeToString()

    return answer


def _reports(requests: WorkerRequests) -> Callable[[str, bytes], Awaitable[bytes]]:
    async def answer(_subject: str, data: bytes) -> bytes:
        return (await requests.report(ReportRequest.FromString(data))).SerializeToString()

    return answer


def main() -> None:
    reuse_freed_memory()
    hide_from_children()
    settings = GatewaySettings.of_environment()
    configure_logging("gateway", settings.log_level, as_json=settings.log_json)
    serve_gauges(settings.metrics)
    asyncio.run(run(settings))


if __name__ == "__main__":
    main()
