"""The caller of a call, which decides on the rows and files that it may read."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import grpc

from finetuneflow.v1.access_pb2 import Role

DEFAULT_TENANT: Final = "default"


@dataclass(frozen=True)
class Caller:
    """An authenticated caller."""

    tenant: str
    role: int
    """A `Role`."""
    key_id: str = ""
    """Empty for a token of an identity provider."""
    root_key_id: str = ""
    """The key that ends this one when it is revoked: itself, unless a key that is not an operator's has created it."""
    subject: str = ""
    """Subject of a token of an identity provider."""
    expire_time: int | None = None
    """When its credentials expire, in microseconds since 1970. None: never."""

    @property
    def is_operator(self) -> bool:
        return self.role == Role.ROLE_OPERATOR


ANYBODY: Final = Caller(DEFAULT_TENANT, Role.ROLE_OPERATOR)
"""Every caller of a gateway that was started as insecure."""

current: ContextVar[Caller] = ContextVar("caller")
"""Set by the interceptor for each call; a call without it fails instead of reaching some tenant."""


def caller_of(context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
    """Returns the caller of the running call."""
    return current.get()


def tenant_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Returns the tenant of the running call. Every query filters by it."""
    return caller_of(context).tenant
