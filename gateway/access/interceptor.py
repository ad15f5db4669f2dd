"""The interceptor that decides who may call what, and sets the caller of each call."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2

from chassis.errors import PermissionDenied
from chassis.server.access_policy import Policy, policies
from chassis.server.handler_wrapping import Context, Streaming, Unary, answer_of, wrapped
from finetuneflow.v1.access_pb2 import Role, Scope
from gateway.access.audit import AuditLog, status_of
from gateway.access.authentication import Authenticator
from gateway.access.callers import ANYBODY, Caller, current
from gateway.uncancellable import finished

_HEALTH: Final = f"/{health_pb2.DESCRIPTOR.services_by_name['Health'].full_name}/"
_REFLECTION: Final = Policy("ServerReflectionInfo", Role.ROLE_OPERATOR, Scope.SCOPE_SYSTEM, "")
"""Policy of every method that is neither in our protos nor of the health service: that is server reflection."""


class AccessInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in the stubs only
    """Authenticates each call, compares it with the policy of its method and writes the audit log.

    Health is open; reflection too if the server listens on loopback only.
    """

    def __init__(
        self,
        services: Iterable[ServiceDescriptor],
        authenticator: Authenticator,
        audit: AuditLog,
        *,
        open_reflection: bool,
    ) -> None:
        self._policies: Mapping[str, Policy] = policies(services)
        self._authenticator = authenticator
        self._audit = audit
        self._open_reflection = open_reflection

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        policy = self._policies.get(method)
        if handler is None or method.startswith(_HEALTH) or (policy is None and self._open_reflection):
            return handler
        found = policy or _REFLECTION
        return wrapped(handler, partial(self._guard, policy=found), partial(self._guard_stream, policy=found))

    def _guard(self, behaviour: Callable[..., Any], *, policy: Policy) -> Unary:
        async def call(request: Any, context: Context) -> Any:
            caller = await self._authenticated(context)
            response = None
            status = grpc.StatusCode.OK.name
            try:
                _check(policy, caller)
                # A request that is a stream may go on for hours.
                streams = not hasattr(request, "DESCRIPTOR")
                with self._authenticator.stream(caller) if streams else contextlib.nullcontext():
                    response = await answer_of(behaviour, request, context)
            except BaseException as error:
                status = status_of(error)
                raise
            finally:
                await self._record(policy, caller, context, request, response, status)
            return response

        return call

    def _guard_stream(self, behaviour: Callable[..., Any], *, policy: Policy) -> Streaming:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            caller = await self._authenticated(context)
            status = grpc.StatusCode.OK.name
            try:
                _check(policy, caller)
                with self._authenticator.stream(caller):
                    async with contextlib.aclosing(behaviour(request, context)) as answers:
                        async for answer in answers:
                            yield answer
            except BaseException as error:
                status = status_of(error)
                raise
            finally:
                await self._record(policy, caller, context, request, None, status)

        return call

    async def _authenticated(self, context: Context) -> Caller:
        # The stubs say a sequence of objects; it is a sequence of pairs.
        metadata: Any = context.invocation_metadata() or ()
        authorization = next((value for key, value in metadata if key == "authorization"), "")
        caller = await self._authenticator.caller(str(authorization), address_of(context))
        current.set(caller)
        return caller

    async def _record(
        self, policy: Policy, caller: Caller, context: Context, request: Any, response: Any, status: str
    ) -> None:
        if policy.resource:
            entry = self._audit.write(policy, caller, address_of(context), request, response, status)
            await finished(entry)


class OpenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in the stubs only
    """Makes every caller an operator of the default tenant, for gateways that were started as insecure."""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        # Each call runs in a task of its own.
        current.set(ANYBODY)
        return await continuation(handler_call_details)


def address_of(context: Context) -> str:
    """Returns the network address of the caller, without its port."""
    kind, _, rest = context.peer().partition(":")
    return unquote(rest.rpartition(":")[0]).strip("[]") if kind in ("ipv4", "ipv6") else kind


def _check(policy: Policy, caller: Caller) -> None:
    if policy.scope == Scope.SCOPE_SERVICE:
        raise PermissionDenied("SERVICES_ONLY", f"{policy.method} is for processes of the system only.")
    if caller.role < policy.role:
        needed = Role.Name(policy.role).removeprefix("ROLE_").lower()
        own = Role.Name(caller.role).removeprefix("ROLE_").lower()
        raise PermissionDenied(
            "ROLE_TOO_LOW",
            f"{policy.method} needs a key with the role {needed}; yours has the role {own}.",
            metadata={"role": needed},
        )
