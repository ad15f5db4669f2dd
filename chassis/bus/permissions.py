"""The accounts and users of the broker, and what each may do: the gateways, and each service and pool.

    python -m chassis.bus.permissions probe trainer trainer=gpu evaluator exporter

prints them for nats-server's configuration; a trainer's pool stands behind "=". The broker reads each password from its
environment variable NATS_<USER>_PASSWORD. A user reaches only the subjects that its process needs, so stolen
credentials of a trainer neither read nor answer the requests of others, and take no work of another pool.

The gateways' account has the streams; each service and pool has an account of its own, which imports those subjects.
Permissions alone would not suffice: a request names the subject of its answer, and the broker itself answers those to
JetStream on any subject of their account, its own API included.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from chassis.bus import subjects
from chassis.bus.streams import EVENTS_STREAM, NODES_STREAM, WORK_STREAM
from chassis.bus.subjects import EVERYONE

GATEWAY: Final = "gateway"
DEFAULT_POOL: Final = "default"

_ACCOUNT: Final = "FTF"
"""The account that has the streams."""
_STREAMS = (WORK_STREAM, EVENTS_STREAM, NODES_STREAM)


@dataclass(frozen=True)
class BusUser:
    """A user of the broker, and the subjects on which it may publish and subscribe, apart from its own inbox."""

    name: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]

    @property
    def password_variable(self) -> str:
        """Name of the environment variable that has the password, in printed configurations."""
        return f"NATS_{self.name.upper().replace('-', '_')}_PASSWORD"

    def entry(self, password: str) -> str:
        """Returns the entry of nats-server's `users`; `password` is written as it is, quotes included."""
        return (
            f'{{ user: "{self.name}", password: {password}, permissions: {{\n'
            f"      publish: {_listed(self.publish)},\n"
            f"      subscribe: {_listed([*self.subscribe, f'{subjects.inbox(self.name)}.>'])}\n"
            "    } }"
        )


def accounts(workers: Sequence[BusUser], passwords: Mapping[str, str], others: str = "") -> str:
    """Returns nats-server's `accounts` for the gateways and these users.

    `passwords` are those of all users by name, written as they are, quotes included. `others` are entries of further
    users of the gateways' account.
    """
    gateway = gateway_user()
    importers: dict[tuple[str, str], list[str]] = {}
    for user in workers:
        for shared in _shared(user):
            importers.setdefault(shared, []).append(_account(user))
    lines = [
        f"{_ACCOUNT} {{",
        "  jetstream: enabled",
        f"  users: [\n    {gateway.entry(passwords[gateway.name])}\n{others}  ]",
        "  exports: [",
        *(f"    {{ {kind}: {name}, accounts: [{', '.join(to)}] }}" for (kind, name), to in importers.items()),
        "  ]",
        "}",
    ]
    for user in workers:
        lines += [f"{_account(user)} {{", f"  users: [\n    {user.entry(passwords[user.name])}\n  ]", "  imports: ["]
        lines += [f"    {{ {kind}: {{ account: {_ACCOUNT}, subject: {subject} }} }}" for kind, subject in _shared(user)]
        lines += ["  ]", "}"]
    return "\n".join(lines)


def gateway_user() -> BusUser:
    """Returns the user of all gateways. Gateways alone create streams and consumers, queue work and publish accepted
    events."""
    streams = [f"$JS.API.STREAM.{verb}.{name}" for verb in ("INFO", "CREATE", "UPDATE") for name in _STREAMS]
    return BusUser(
        GATEWAY,
        publish=(
            f"{subjects.WORK}.>",
            f"{subjects.EVENTS}.>",
            # Where the broker passes answers on to another account.
            "_R_.>",
            "$JS.API.INFO",
            *streams,
            f"$JS.API.CONSUMER.CREATE.{WORK_STREAM}.>",
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
        ),
    )


def worker_user(service: str, pool: str = DEFAULT_POOL) -> BusUser:
    """Returns the user of the processes of a service and pool."""
    consumer = subjects.consumer(service, pool)
    return BusUser(
        user_name(service, pool),
        publish=(
            subjects.claim(service, pool),
            subjects.claim(service, pool) + EVERYONE,
            subjects.report("*"),
            subjects.report("*") + EVERYONE,
            subjects.node(service, "*"),
            f"$JS.API.CONSUMER.MSG.NEXT.{WORK_STREAM}.{consumer}",
            f"$JS.ACK.{WORK_STREAM}.{consumer}.>",
            f"$JS.ACK.*.*.{WORK_STREAM}.{consumer}.>",
        ),
        subscribe=(subjects.event("*", "state_changed"),),
    )


def _shared(worker: BusUser) -> list[tuple[str, str]]:
    """Returns what a worker's account imports: the kind and the quoted subject."""
    services = [("service", f'"{subject}"') for subject in worker.publish]
    return services + [("stream", f'"{subject}"') for subject in worker.subscribe]


def _account(worker: BusUser) -> str:
    return f'"{_ACCOUNT}_{worker.name}"'


def user_name(service: str, pool: str = DEFAULT_POOL) -> str:
    """Returns the name of the user of a service and pool: `trainer` for the default pool, `trainer-gpu` for `gpu`."""
    return service if pool == DEFAULT_POOL else f"{service}-{pool}"


def _listed(found: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{subject}"' for subject in found) + "]"


def _user(text: str) -> BusUser:
    service, _, pool = text.partition("=")
    return worker_user(service, pool or DEFAULT_POOL)


def main() -> None:
    description = "Prints the accounts and users of the broker for nats-server's configuration."
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("users", type=_user, nargs="+", metavar="SERVICE[=POOL]")
    workers: list[BusUser] = parser.parse_args().users
    passwords = {user.name: f"${user.password_variable}" for user in (gateway_user(), *workers)}
    sys.stdout.write(f"accounts {{\n{accounts(workers, passwords)}\n}}\n")


if __name__ == "__main__":
    main()
