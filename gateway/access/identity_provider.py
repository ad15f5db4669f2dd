"""Callers with a token (JWT) of an OpenID Connect provider."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import jwt

from chassis.errors import Unauthenticated, Unavailable
from finetuneflow.v1.access_pb2 import Role
from gateway.access.callers import Caller

_ROLES: Final = {"reader": Role.ROLE_READER, "member": Role.ROLE_MEMBER, "operator": Role.ROLE_OPERATOR}
_FETCH_SECONDS: Final = 10.0


@dataclass(frozen=True)
class ProviderSettings:
    """Conditions under which a token is accepted."""

    issuer: str
    """URL of the provider, equal to the tokens' `iss`. Its keys are found with `/.well-known/openid-configuration`."""
    audience: str
    """A value that the tokens' `aud` must contain."""
    algorithms: Sequence[str]
    """Signature algorithms that are accepted: asymmetric ones."""
    tenant_claim: str
    """Name of the claim with the caller's tenant."""
    role_claim: str
    """Name of the claim with the caller's role: reader, member or operator, or a list, of which the highest counts."""


class IdentityProvider:
    """Checks tokens. The provider's keys are fetched when they are first needed, and again for a new key id."""

    def __init__(self, settings: ProviderSettings) -> None:
        url = urlsplit(settings.issuer)
        if url.scheme != "https" and url.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise ValueError(f"the issuer {settings.issuer!r} must be an https:// address")
        if any(not name.startswith(("RS", "PS", "ES", "Ed")) for name in settings.algorithms):
            raise ValueError(f"only asymmetric algorithms are accepted, not {', '.join(settings.algorithms)}")
        self._settings = settings
        self._keys: jwt.PyJWKClient | None = None

    async def caller(self, token: str) -> Caller:
        """Returns the caller. Raises Unauthenticated, and Unavailable while the provider's keys can't be fetched."""
        return await asyncio.to_thread(self._caller, token)

    def _caller(self, token: str) -> Caller:
        settings = self._settings
        try:
            key = self._key_client().get_signing_key_from_jwt(token)
            claims = jwt.decode(
                token,
                key,
                algorithms=list(settings.algorithms),
                audience=settings.audience,
                issuer=settings.issuer,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (OSError, jwt.PyJWKClientConnectionError) as error:
            message = "The identity provider cannot be reached; try again."
            raise Unavailable("NO_IDENTITY_PROVIDER", message) from error
        except jwt.PyJWTError as error:
            raise _invalid(str(error)) from error
        tenant = claims.get(settings.tenant_claim)
        if not isinstance(tenant, str) or not tenant:
            raise _invalid(f"its claim {settings.tenant_claim!r} names no tenant")
        expire_time = int(claims["exp"]) * 1_000_000
        return Caller(tenant, self._role(claims), subject=str(claims["sub"]), expire_time=expire_time)

    def _role(self, claims: dict[str, Any]) -> int:
        given = claims.get(self._settings.role_claim)
        names = given if isinstance(given, list) else [given]
        roles = [_ROLES[name] for name in names if isinstance(name, str) and name in _ROLES]
        if not roles:
            raise _invalid(f"its claim {self._settings.role_claim!r} has none of: {', '.join(_ROLES)}")
        return max(roles)

    def _key_client(self) -> jwt.PyJWKClient:
        if self._keys is None:
            url = self._settings.issuer.rstrip("/") + "/.well-known/openid-configuration"
            with urllib.request.urlopen(url, timeout=_FETCH_SECONDS) as response:  # noqa: S310 - https, see __init__
                address = json.load(response)["jwks_uri"]
            self._keys = jwt.PyJWKClient(address, timeout=int(_FETCH_SECONDS))
        return self._keys


def _invalid(why: str) -> Unauthenticated:
    return Unauthenticated("INVALID_TOKEN", f"The token is not valid here: {why}.")
