"""Starts and stops the processes of one system in order: nats-server, gateway, deliveries and the four services."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import grpc

from chassis.bus.permissions import DEFAULT_POOL, GATEWAY, worker_user
from chassis.security.certificates import CertificateAuthority, CertificateFiles
from chassis.security.identity import Identity
from chassis.security.signing import make_signing_key
from standalone import nats
from standalone.listener import Listener
from standalone.ports import LOOPBACK, free_port
from standalone.processes import Program, StartFailed, SupervisedProcess, serving

SERVICES = ("probe", "trainer", "evaluator", "exporter")
# Longer than a worker's own drain_seconds, after which the worker itself kills what still runs.
_DRAIN_SECONDS = 75.0


class Stack:
    """The processes of one home folder. `processes` has them by name after the start."""

    def __init__(self, home: Path, listener: Listener, notify: Callable[[str], None]) -> None:
        self.home = home
        self.listener = listener
        self.address = listener.local_address
        self.logs = home / "logs"
        self.operator_key_file = home / "operator.key"
        self.signing_key_file = home / "signing-key.pem"
        self.processes: dict[str, SupervisedProcess] = {}
        self._notify = notify

    @property
    def authority_file(self) -> Path:
        """The authority's certificate, for clients on other machines."""
        return self.home / "tls" / "ca" / "cert.pem"

    async def start(self) -> None:
        """Returns when every process is ready.

        Raises StartFailed or NatsServerMissing; the processes that were started until then keep running.
        """
        authority = CertificateAuthority.open(self.home / "tls" / "ca")
        files = {
            name: authority.issue(self.home / "tls" / name, name, hosts)
            for name, hosts in (
                ("nats", (LOOPBACK,)),
                ("gateway", self.listener.names),
                *((service, ()) for service in SERVICES),
            )
        }
        workers = {name: worker_user(name) for name in SERVICES}
        workers["trainer"] = worker_user("trainer", os.environ.get("FTF_TRAINER_POOL", DEFAULT_POOL))
        broker = nats.configure(self.home / "nats", free_port(), [*workers.values()], files["nats"])
        await self._keep(Program("nats-server", broker.argv, broker.ready)).start()

        def connection(name: str) -> dict[str, str]:
            user = workers[name].name if name in workers else GATEWAY
            return {
                "NATS_URL": broker.url,
                "NATS_USER": user,
                "NATS_PASSWORD": broker.passwords[user],
                "SERVICE_CERT": str(files[name].certificate),
                "SERVICE_KEY": str(files[name].key),
                "SERVICE_CA": str(files[name].authority),
                # What the user has set for other processes must not open these.
                "INSECURE": "false",
            }

        gateway = Identity(files["gateway"])
        programs = [
            self._gateway(files["gateway"], connection("gateway")),
            self._deliveries(connection("gateway"), gateway),
        ]
        for name in SERVICES:
            address = f"{LOOPBACK}:{free_port()}"
            settings = {**connection(name), **(self._signing() if name == "exporter" else {})}
            programs.append(self._service(name, address, settings, gateway))
        # All are registered before any is started: if one start fails, `stop` must find all others.
        await asyncio.gather(*(kept.start() for kept in [self._keep(program) for program in programs]))

    def _signing(self) -> dict[str, str]:
        """Returns the setting of the key that signs packages, which is made if there is none; nothing if the user has
        set another one."""
        if os.environ.get("FTF_EXPORTER_SIGNING_KEY_FILE") or os.environ.get("FTF_SIGNING_KEY_FILE"):
            return {}
        try:
            make_signing_key(self.signing_key_file)
        except ValueError as error:
            raise StartFailed(str(error)) from error
        return {"SIGNING_KEY_FILE": str(self.signing_key_file)}

    async def stop(self) -> None:
        """Drains the services, then stops the gateway, which receives their last reports, then the broker."""
        for names in (SERVICES, ("gateway", "deliveries"), ("nats-server",)):
            await asyncio.gather(*(self.processes[name].stop() for name in names if name in self.processes))

    def kill(self) -> None:
        """Kills every process. Accepted events are kept; a running job restarts from its last checkpoint."""
        for process in self.processes.values():
            process.kill()

    def _keep(self, program: Program) -> SupervisedProcess:
        kept = SupervisedProcess(program, self.home, self.logs, self._notify)
        self.processes[program.name] = kept
        return kept

    def _gateway(self, own: CertificateFiles, connection: Mapping[str, str]) -> Program:
        settings = {
            "LISTEN": self.listener.listen,
            "TLS_CERT": str(self.listener.certificate or own.certificate),
            "TLS_KEY": str(self.listener.key or own.key),
            "OPERATOR_KEY_FILE": str(self.operator_key_file),
            **connection,
        }
        # Its health is open to everybody; only who it is has to be known.
        certificate = self.listener.certificate or own.authority
        trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
        ready = serving(lambda: _channel(self.address, trusted, "" if self.listener.certificate else "gateway"))
        return self._program("gateway", "gateway", settings, ready, stop_seconds=10.0)

    def _deliveries(self, connection: Mapping[str, str], gateway: Identity) -> Program:
        address = f"{LOOPBACK}:{free_port()}"
        settings = {"DELIVERIES_LISTEN": address, **connection}
        ready = serving(lambda: _channel(address, gateway.channel_credentials(), "gateway"))
        # It reads the settings of the gateways, of which it is a part.
        env = {f"FTF_GATEWAY_{key}": value for key, value in {"HOME": str(self.home), **settings}.items()}
        return Program("deliveries", (sys.executable, "-m", "gateway.deliveries"), ready, env, stop_seconds=10.0)

    def _service(self, name: str, address: str, given: Mapping[str, str], gateway: Identity) -> Program:
        ready = serving(lambda: _channel(address, gateway.channel_credentials(), name))
        settings = {"LISTEN": address, **given}
        return self._program(name, f"services.{name}", settings, ready, stop_seconds=_DRAIN_SECONDS)

    def _program(
        self,
        name: str,
        module: str,
        settings: Mapping[str, str],
        ready: Callable[[], Awaitable[bool]],
        *,
        stop_seconds: float,
    ) -> Program:
        # Settings named for the service override those that the user has set for all processes.
        env = {f"FTF_{name.upper()}_{key}": value for key, value in {"HOME": str(self.home), **settings}.items()}
        return Program(name, (sys.executable, "-m", module), ready, env, stop_seconds)


def _channel(address: str, credentials: grpc.ChannelCredentials, name: str) -> grpc.aio.Channel:
    # A web proxy does not reach the ports of this machine.
    options: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0)]
    if name:
        options.append(("grpc.ssl_target_name_override", name))
    return grpc.aio.secure_channel(address, credentials, options=options)
