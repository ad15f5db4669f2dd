"""API keys, and who the caller is."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime

from finetuneflow.blocking import Blocking, blocking, iterating
from finetuneflow.enums import enum_number
from finetuneflow.fields import fill, timestamp
from finetuneflow.paging import paged
from finetuneflow.resources.access import ApiKey, Caller, CreatedKey, Role
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import access_pb2, key_service_pb2_grpc
from finetuneflow.v1 import key_service_pb2 as pb


class AsyncKeys:
    """`client.keys` of an AsyncClient."""

    def __init__(self, transport: CallPolicy) -> None:
        self._transport = transport
        self._stub = key_service_pb2_grpc.KeyServiceStub(transport.channel)

    async def caller(self) -> Caller:
        """Returns the caller: its tenant, its role and its key.

        Returns:
            The caller.

        Raises:
            Unauthenticated: There is no key, or it is unknown, revoked or expired.
        """
        return Caller.from_proto(await self._transport.call(self._stub.GetCaller, pb.GetCallerRequest()))

    async def create(
        self,
        *,
        tenant: str = "",
        role: Role | str | None = None,
        display_name: str = "",
        expire_time: datetime | None = None,
    ) -> CreatedKey:
        """Creates a key. Store its `token`: the server cannot show it again.

        The call is not repeated if its response is lost, because each call creates another key.

        Args:
            tenant: Name of the tenant. Default: the caller's.
            role: `reader`, `member` or `operator`. Default: `member`, or the caller's role if that is lower.
            display_name: Display name, such as the person or program that will use the key. At most 120 characters.
            expire_time: When the key stops working; a datetime with a time zone. Default: when the caller's key does,
                or never for a key created by an operator.

        Returns:
            The key, with its `token`.

        Raises:
            InvalidArgument: The role is unknown, or the time is in the past, later than the end of the caller's key, or
                has no time zone.
            NotFound: The tenant does not exist.
            PermissionDenied: The tenant is another one, or the role is higher than the caller's, and the caller is no
                operator.
            Unavailable: The connection was lost; the key may have been created. Revoke it if `list` shows it.
        """
        request = fill(
            pb.CreateKeyRequest(),
            tenant=tenant,
            role=enum_number(access_pb2.Role.DESCRIPTOR, role, "role") if role else None,
            display_name=display_name,
            expire_time=timestamp("expire_time", expire_time),
        )
        return CreatedKey.from_proto(await self._transport.call_once(self._stub.CreateKey, request))

    def list(
        self, *, tenant: str = "", include_ended: bool = False, limit: int | None = None
    ) -> AsyncGenerator[ApiKey, None]:
        """Lists keys, oldest first: for an operator all of them, otherwise the caller's and those that it created.
        Pages are fetched as needed.

        Args:
            tenant: Lists only keys of this tenant. Default: all tenants for an operator.
            include_ended: Also lists keys that were revoked or have expired.
            limit: Maximum number of keys. Default: no limit.

        Yields:
            The keys.
        """
        request = fill(pb.ListKeysRequest(), tenant=tenant, include_ended=include_ended)
        return paged(self._transport, self._stub.ListKeys, request, "keys", limit, ApiKey.from_proto)

    async def revoke(self, key_id: str) -> ApiKey:
        """Revokes a key, and with it the keys that it created, unless it is an operator's. Calls with them fail from
        then on, and running streams end within seconds. A repeated call has no effect.

        Args:
            key_id: Id of the key.

        Returns:
            The revoked key.

        Raises:
            NotFound: The key does not exist, or is not the caller's.
        """
        response = await self._transport.call(self._stub.RevokeKey, fill(pb.RevokeKeyRequest(), key_id=key_id))
        return ApiKey.from_proto(response.key)


class Keys(Blocking):
    """`client.keys`. Operators manage all keys; other callers see, create and revoke only their own."""

    caller = blocking(AsyncKeys.caller)
    create = blocking(AsyncKeys.create)
    list = iterating(AsyncKeys.list)
    revoke = blocking(AsyncKeys.revoke)
