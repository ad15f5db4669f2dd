"""API keys."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime

from finetuneflow.blocking import Blocking, blocking, iterating
from finetuneflow.enums import enum_number
from finetuneflow.fields import fill
from finetuneflow.paging import paged
from finetuneflow.resources.access import ApiKey, Caller, CreatedKey, Role
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import access_pb2
from finetuneflow.v1 import key_service_pb2 as pb
from finetuneflow.v1 import key_service_pb2_grpc as pb_grpc


class AsyncKeys:
    """`client.keys` of an AsyncClient."""

    def __init__(self, transport: CallPolicy) -> None:
        self._transport = transport
        self._stub = pb_grpc.KeyServiceStub(transport.channel)

    async def caller(self) -> Caller:
        """Returns who this client is for its server.

        Returns:
            Tenant, role and key of the caller.

        Raises:
            Unauthenticated: The client has no key, or one that the server refuses.
        """
        return Caller.from_proto(await self._transport.call(self._stub.GetCaller, pb.GetCallerRequest()))

    async def create(
        self,
        *,
        tenant: str | None = None,
        role: Role | str | None = None,
        display_name: str | None = None,
        expire_time: datetime | None = None,
    ) -> CreatedKey:
        """Creates a key. If the answer is lost, the call is repeated and may leave a key that nobody has; revoke it.

        Args:
            tenant: Tenant of the key. Default: the caller's.
            role: `reader`, `member` or `operator`. Default: member, or the caller's if that is lower.
            display_name: Display name, such as the person or program that will use it. At most 120 characters.
            expire_time: Time at which it stops working, with a time zone. Default: when the caller's key does, or never
                for a key created by an operator.

        Returns:
            The key with its secret, which cannot be shown again.

        Raises:
            PermissionDenied: Only operators create keys for another tenant or with a higher role than their own.
            NotFound: The tenant does not exist.
            InvalidArgument: A value is out of range; `violations` names it.
        """
        number = enum_number(access_pb2.Role.DESCRIPTOR, role, "role") if role else None
        request = fill(pb.CreateKeyRequest(), tenant=tenant, role=number, display_name=display_name)
        if expire_time is not None:
            request.expire_time.FromDatetime(expire_time)
        return CreatedKey.from_proto(await self._transport.call(self._stub.CreateKey, request))

    def list(
        self, *, tenant: str | None = None, include_ended: bool = False, limit: int | None = None
    ) -> AsyncGenerator[ApiKey, None]:
        """Lists keys, oldest first: all for an operator, otherwise the caller's own and those that it has created.

        Args:
            tenant: Lists only keys of this tenant. Default: all that the caller may see.
            include_ended: Also lists keys that were revoked or have expired.
            limit: Maximum number of keys. Default: no limit.

        Yields:
            The keys.
        """
        request = fill(pb.ListKeysRequest(), tenant=tenant, include_ended=include_ended)
        return paged(self._transport, self._stub.ListKeys, request, "keys", limit, ApiKey.from_proto)

    async def revoke(self, key_id: str) -> ApiKey:
        """Revokes a key, and with it the keys that it created, unless it is an operator's. Streams of it end.

        Args:
            key_id: Id of the key.

        Returns:
            The revoked key.

        Raises:
            NotFound: The key does not exist, or it is not the caller's.
        """
        response = await self._transport.call(self._stub.RevokeKey, pb.RevokeKeyRequest(key_id=key_id))
        return ApiKey.from_proto(response.key)


class Keys(Blocking):
    """`client.keys`."""

    caller = blocking(AsyncKeys.caller)
    create = blocking(AsyncKeys.create)
    list = iterating(AsyncKeys.list)
    revoke = blocking(AsyncKeys.revoke)
