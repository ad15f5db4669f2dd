"""Callers with tokens of an OpenID Connect provider: a real one of two pages, on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from finetuneflow.v1.access_pb2 import Role
from finetuneflow.v1.tenant_service_pb2 import CreateTenantRequest
from gateway.access.identity_provider import IdentityProvider, ProviderSettings
from tests.access.gateway import AccessGateway


class Provider:
    """Serves its configuration and the public half of its key."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        provider = self

        class Pages(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = provider.pages().get(self.path)
                self.send_response(200 if page else 404)
                self.end_headers()
                self.wfile.write(json.dumps(page).encode())

            def log_message(self, *args: object) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
        self.issuer = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def pages(self) -> dict[str, Any]:
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
        return {
            "/.well-known/openid-configuration": {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys"},
            "/keys": {"keys": [{**public, "kid": "one", "use": "sig", "alg": "RS256"}]},
        }

    def token(self, key: Any = None, algorithm: str = "RS256", **claims: object) -> str:
        values = {
            "iss": self.issuer,
            "aud": "finetuneflow",
            "sub": "person@example.org",
            "exp": int(time.time()) + 600,
            "tenant": "acme",
            "role": "member",
            **claims,
        }
        given = {name: value for name, value in values.items() if value is not None}
        return jwt.encode(given, key or self.key, algorithm=algorithm, headers={"kid": "one"})

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.stop()


@pytest.fixture(scope="module")
def oidc_gateway(tmp_path_factory: pytest.TempPathFactory, provider: Provider) -> Iterator[AccessGateway]:
    gateway = AccessGateway(
        tmp_path_factory.mktemp("oidc"), OIDC_ISSUER=provider.issuer, AUTH_FAILURES_PER_MINUTE="1000"
    )
    gateway.start()
    gateway.call("TenantService.CreateTenant", gateway.operator, CreateTenantRequest(name="acme"))
    yield gateway
    gateway.stop()


def test_token_of_the_provider_gives_tenant_and_role(oidc_gateway: AccessGateway, provider: Provider) -> None:
    [caller] = oidc_gateway.call("KeyService.GetCaller", provider.token()).responses
    assert (caller.tenant, caller.role, caller.subject) == ("acme", Role.ROLE_MEMBER, "person@example.org")
    assert not caller.HasField("key")
    [caller] = oidc_gateway.call("KeyService.GetCaller", provider.token(role=["staff", "reader"])).responses
    assert caller.role == Role.ROLE_READER


def test_keys_still_work_beside_the_provider(oidc_gateway: AccessGateway) -> None:
    assert oidc_gateway.call("KeyService.GetCaller", oidc_gateway.operator).code is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": 1_000_000_000}, "INVALID_TOKEN"),
        ({"exp": None}, "INVALID_TOKEN"),
        ({"aud": "another"}, "INVALID_TOKEN"),
        ({"aud": None}, "INVALID_TOKEN"),
        ({"iss": "https://example.org"}, "INVALID_TOKEN"),
        ({"tenant": None}, "INVALID_TOKEN"),
        ({"tenant": ["acme"]}, "INVALID_TOKEN"),
        ({"role": "root"}, "INVALID_TOKEN"),
        ({"role": None}, "INVALID_TOKEN"),
        ({"tenant": "nobody"}, "TENANT_DISABLED"),
    ],
)
def test_token_with_wrong_claims_is_refused(
    oidc_gateway: AccessGateway, provider: Provider, claims: dict[str, object], reason: str
) -> None:
    answer = oidc_gateway.call("KeyService.GetCaller", provider.token(**claims))
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason), answer


def test_token_with_a_foreign_signature_is_refused(oidc_gateway: AccessGateway, provider: Provider) -> None:
    """Also the two classic ones: no signature, and the public key as the secret of a symmetric one."""
    foreign = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    modulus = str(provider.pages()["/keys"]["keys"][0]["n"])
    for token in (
        provider.token(key=foreign),
        provider.token(key=modulus, algorithm="HS256"),
        jwt.encode({"sub": "x"}, None, algorithm="none", headers={"kid": "one"}),
        "a.b.c",
        "x" * 5000,
    ):
        answer = oidc_gateway.call("KeyService.GetCaller", token)
        assert (answer.code, answer.reason) == (grpc.StatusCode.UNAUTHENTICATED, "INVALID_TOKEN"), answer


def test_caller_of_the_provider_creates_no_keys(oidc_gateway: AccessGateway, provider: Provider) -> None:
    """A key would outlive the person's account at the provider."""
    answer = oidc_gateway.call("KeyService.CreateKey", provider.token())
    assert (answer.code, answer.reason) == (grpc.StatusCode.PERMISSION_DENIED, "OPERATORS_ONLY")


@pytest.mark.parametrize(
    ("issuer", "algorithms"),
    [("http://provider.example.org", ("RS256",)), ("https://provider.example.org", ("HS256",))],
)
def test_settings_that_would_accept_forged_tokens_stop_the_start(issuer: str, algorithms: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"https|asymmetric"):
        IdentityProvider(ProviderSettings(issuer, "finetuneflow", algorithms, "tenant", "role"))
