"""Fixtures: a gateway with two tenants and keys of every kind."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from finetuneflow.v1.access_pb2 import Role
from finetuneflow.v1.key_service_pb2 import CreateKeyRequest, RevokeKeyRequest
from finetuneflow.v1.tenant_service_pb2 import CreateTenantRequest, UpdateTenantRequest
from gateway.access.keys import digest, new_token
from gateway.sql.database import Database
from gateway.sql.tables import ApiKeyRow, now
from tests.access.gateway import AccessGateway


@dataclass(frozen=True)
class Tokens:
    """Keys of one gateway. `expired`, `revoked` and `disabled` were valid keys of members."""

    operator: str
    member: str
    reader: str
    other_member: str
    """Of another tenant."""
    expired: str
    revoked: str
    disabled: str
    """Of a tenant that is disabled."""

    @property
    def malformed(self) -> str:
        return self.member[:-1]

    @property
    def wrong_secret(self) -> str:
        return self.member[:-64] + "0" * 64


@pytest.fixture(scope="session")
def access_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AccessGateway]:
    gateway = AccessGateway(tmp_path_factory.mktemp("access"), AUTH_FAILURES_PER_MINUTE="1000000")
    gateway.start()
    yield gateway
    gateway.stop()


def create_key(gateway: AccessGateway, creator: str, **values: object) -> str:
    """Creates a key and returns its token."""
    answer = gateway.call("KeyService.CreateKey", creator, CreateKeyRequest(**values))  # type: ignore[arg-type]
    assert answer.responses, answer
    token: str = answer.responses[0].token
    return token


@pytest.fixture(scope="session")
def tokens(access_gateway: AccessGateway) -> Tokens:
    operator = access_gateway.operator
    for name in ("acme", "globex", "closed"):
        answer = access_gateway.call("TenantService.CreateTenant", operator, CreateTenantRequest(name=name))
        assert answer.responses, answer

    def key(tenant: str, role: int = Role.ROLE_MEMBER) -> str:
        return create_key(access_gateway, operator, tenant=tenant, role=role)

    revoked, disabled = key("acme"), key("closed")
    access_gateway.call("KeyService.RevokeKey", operator, RevokeKeyRequest(key_id=revoked.split("_")[1]))
    access_gateway.call("TenantService.UpdateTenant", operator, UpdateTenantRequest(name="closed", disabled=True))
    return Tokens(
        operator=operator,
        member=key("acme"),
        reader=key("acme", Role.ROLE_READER),
        other_member=key("globex"),
        expired=asyncio.run(_insert_expired_key(access_gateway)),
        revoked=revoked,
        disabled=disabled,
    )


async def _insert_expired_key(gateway: AccessGateway) -> str:
    key_id, token = new_token()
    database = await Database.open(gateway.database)
    async with database.write() as session:
        session.add(
            ApiKeyRow(
                id=key_id,
                tenant="acme",
                role=Role.ROLE_MEMBER,
                secret_sha256=digest(token),
                root_id=key_id,
                create_time=now() - 2_000_000,
                expire_time=now() - 1_000_000,
            )
        )
    await database.close()
    return token
