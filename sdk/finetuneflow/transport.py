"""The synchronous channel: calls with a deadline, retries where repeating is safe, typed errors."""

from __future__ import annotations

import time
from typing import Any

import grpc
from google.protobuf.message import Message

from finetuneflow.connection import Connection
from finetuneflow.errors import ApiError, ServerUnreachable, from_rpc_error
from finetuneflow.patience import Patience

# A server that answered before is restarting; one that never did isn't there.
_SECONDS_FOR_A_RESTART = 30.0
_SECONDS_FOR_A_START = 1.5


class Transport:
    """One channel to a gateway, opened at the first call. Safe to share between threads."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        credentials = connection.credentials
        if credentials is None:
            self.channel = grpc.insecure_channel(connection.address, options=connection.options)
        else:
            self.channel = grpc.secure_channel(connection.address, credentials, options=connection.options)
        self._answered = False

    def patience(self) -> Patience:
        return Patience(_SECONDS_FOR_A_RESTART if self._answered else _SECONDS_FOR_A_START)

    def call(self, method: Any, request: Message, *, timeout: float = 30.0) -> Any:
        """One unary call, repeated while the server can't be reached: every call made through here is idempotent.

        `timeout` is in seconds and for one try. Raises ApiError.
        """
        patience = self.patience()
        while True:
            try:
                response = method(request, timeout=timeout, metadata=self.connection.metadata)
            except grpc.RpcError as rpc_error:
                error = self.error(rpc_error)
                delay = patience.next_delay() if isinstance(error, ServerUnreachable) else None
                if delay is None:
                    raise error from rpc_error
                time.sleep(delay)
            else:
                self._answered = True
                return response

    def stream(self, method: Any, request: Any, *, timeout: float | None = None) -> Any:
        """Starts a streaming call; iterating over it raises grpc.RpcError, which `error` translates."""
        return method(request, timeout=timeout, metadata=self.connection.metadata)

    def error(self, rpc_error: grpc.RpcError) -> ApiError:
        error = from_rpc_error(rpc_error, self.connection.address)
        if not isinstance(error, ServerUnreachable):
            self._answered = True
        return error

    def close(self) -> None:
        self.channel.close()
