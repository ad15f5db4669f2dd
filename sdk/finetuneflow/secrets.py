"""Secrets of the caller's tenant, for jobs that name them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from finetuneflow.blocking import Blocking, blocking, iterating
from finetuneflow.paging import paged
from finetuneflow.resources.secret import Secret
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import secret_service_pb2 as pb
from finetuneflow.v1 import secret_service_pb2_grpc as pb_grpc


class AsyncSecrets:
    """`client.secrets` of an AsyncClient. No method returns a value."""

    def __init__(self, transport: CallPolicy) -> None:
        self._transport = transport
        self._stub = pb_grpc.SecretServiceStub(transport.channel)

    async def set(self, name: str, value: str) -> Secret:
        """Creates a secret or replaces its value. Attempts that have begun keep the value that they got.

        Args:
            name: Name: 1 to 63 characters of a-z, 0-9, `_` and `-`, starting with a letter.
            value: The value: 1 byte to 64 KiB of UTF-8, stored as it is; a newline at its end is part of it.

        Returns:
            The secret, without its value.

        Raises:
            InvalidArgument: The name or the value is not valid.
        """
        response = await self._transport.call(self._stub.SetSecret, pb.SetSecretRequest(name=name, value=value))
        return Secret.from_proto(response.secret)

    def list(self, *, limit: int | None = None) -> AsyncGenerator[Secret, None]:
        """Lists the secrets without their values, ordered by name. Pages are fetched as needed.

        Args:
            limit: Maximum number of secrets. Default: no limit.

        Yields:
            The secrets.
        """
        request = pb.ListSecretsRequest()
        return paged(self._transport, self._stub.ListSecrets, request, "secrets", limit, Secret.from_proto)

    async def delete(self, name: str) -> Sequence[str]:
        """Deletes a secret. Attempts that have begun keep it; later ones of jobs that name it fail.

        Args:
            name: Name of the secret.

        Returns:
            Ids of the integrations that have not ended and name the secret, at most 100. Each fails at its next
            delivery, unless the secret is set again before.

        Raises:
            NotFound: The secret does not exist.
            InvalidArgument: No secret can have that name.
        """
        response = await self._transport.call(self._stub.DeleteSecret, pb.DeleteSecretRequest(name=name))
        return list(response.integration_ids)


class Secrets(Blocking):
    """`client.secrets`. No method returns a value."""

    set = blocking(AsyncSecrets.set)
    list = iterating(AsyncSecrets.list)
    delete = blocking(AsyncSecrets.delete)
