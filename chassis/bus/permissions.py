"""The users of the broker, and what each may do: the gateway, and one user for each service and pool.

    python -m chassis.bus.permissions probe trainer trainer=gpu evaluator exporter

prints them for nats-server's configuration; a trainer's pool stands behind "=". The broker reads each password from its
environment variable NATS_<USER>_PASSWORD. A user reaches only the subjects that its process needs, so stolen
credentials of a trainer neither read nor answer the requests of others, and take no work of another pool.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from chassis.bus import subjects
from chassis.bus.streams import EVENTS_STREAM, NODES_STREAM, WORK_STREAM
from chassis.bus.subjects import EVERYONE

GATEWAY: Final = "gateway"
DEFAULT_POOL: Final = "default"

_STREAMS = (WORK_STREAM, EVENTS_STREAM, NODES_STREAM)


@dataclass(frozen=True)
class BusUser:
    """A user of the broker, and the subjects on which it may publish and subscribe."""

    name: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]

    @property
    def password_variable(self) -> str:
        """Name of the environment variable that has the password, in printed configurations."""
        return f"NATS_{self.name.upper().replace('-', '_')}_PASSWORD"

    def configuration(self, password: str) -> str:
        """Returns the entry of nats-server's `users`; `password` is written as it is, quotes included."""
        return (
            f'{{ user: "{self.name}", password: {password}, permissions: {{\n'
            f"  publish: {_listed(self.publish)},\n"
            f"  subscribe: {_listed(self.subscribe)}\n"
            "} }"
        )


def gateway_user() -> BusUser:
    """Returns the user of all gateways. Gateways alone create streams, queue work and publish accepted events."""
    streams = [f"$JS.API.STREAM.{verb}.{name}" for verb in ("INFO", "CREATE", "UPDATE") for name in _STREAMS]
    return BusUser(
        GATEWAY,
        publish=(
            f"{subjects.WORK}.>",
            f"{subjects.EVENTS}.>",
            # Answers go to inboxes only: a request names the subject of its answer, which could be one of JetStream's
            # API. (The broker's allow_responses would let the gateway publish there.)
            f"{subjects.INBOXES}.>",
            "$JS.API.INFO",
            *streams,
            f"$JS.API.STREAM.MSG.GET.{NODES_STREAM}",
            f"$JS.API.DIRECT.GET.{NODES_STREAM}.>",
            f"$JS.API.DIRECT.GET.{NODES_STREAM}",
        ),
        subscribe=(
            subjects.claim("*", "*"),
            subjects.claim("*", "*") + EVERYONE,
            subjects.report("*"),
            subjects.report("*") + EVERYONE,
            f"{subjects.EVENTS}.>",
            f"{subjects.inbox(GATEWAY)}.>",
        ),
    )


def worker_user(service: str, pool: str = DEFAULT_POOL) -> BusUser:
    """Returns the user of the processes of a service and pool."""
    consumer = subjects.consumer(service, pool)
    name = user_name(service, pool)
    return BusUser(
        name,
        publish=(
            subjects.claim(service, pool),
            subjects.claim(service, pool) + EVERYONE,
            subjects.report("*"),
            subjects.report("*") + EVERYONE,
            subjects.node(service, "*"),
            f"$JS.API.CONSUMER.MSG.NEXT.{WORK_STREAM}.{consumer}",
            # Only this form has the consumer's filter in the subject, where the server compares it.
            f"$JS.API.CONSUMER.CREATE.{WORK_STREAM}.{consumer}.{subjects.queue(service, pool)}",
            f"$JS.ACK.{WORK_STREAM}.{consumer}.>",
            f"$JS.ACK.*.*.{WORK_STREAM}.{consumer}.>",
        ),
        subscribe=(subjects.event("*", "state_changed"), f"{subjects.inbox(name)}.>"),
    )


def user_name(service: str, pool: str = DEFAULT_POOL) -> str:
    """Returns the name of the user of a service and pool: `trainer` for the default pool, `trainer-gpu` for `gpu`."""
    return service if pool == DEFAULT_POOL else f"{service}-{pool}"


def _listed(found: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{subject}"' for subject in found) + "]"


def _user(text: str) -> BusUser:
    service, _, pool = text.partition("=")
    return worker_user(service, pool or DEFAULT_POOL)


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints the users of the broker for nats-server's configuration.")
    parser.add_argument("users", type=_user, nargs="+", metavar="SERVICE[=POOL]")
    given = parser.parse_args()
    lines = [user.configuration(f"${user.password_variable}") for user in (gateway_user(), *given.users)]
    sys.stdout.write("users: [\n" + "\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
