"""HTTP requests to addresses of callers' choice: addresses are checked, redirects are not followed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from gateway.deliveries.sinks import DeliveryFailed
from gateway.outbound_addresses import AddressPolicy, AddressRefused

_MAX_ANSWER_BYTES = 1 << 20


class _CheckedResolver(AbstractResolver):
    """Checks what it resolves. The connection is made to these very addresses, so a name that changes gains nothing."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        self._policy.check_resolved(host, port, [each["host"] for each in found])
        return found

    async def close(self) -> None:
        await self._resolver.close()


class HttpClient:
    """Used by all deliveries of a process. It keeps no cookies and ignores proxies of the environment."""

    def __init__(self, policy: AddressPolicy, timeout_seconds: float) -> None:
        self._policy = policy
        self._timeout_seconds = timeout_seconds
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=_CheckedResolver(policy), use_dns_cache=False, limit_per_host=16),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            # Nothing is decompressed here, so that a small answer cannot become a large one.
            headers={"accept-encoding": "identity"},
            auto_decompress=False,
        )

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        params: Mapping[str, str] | None = None,
        read: bool = False,
    ) -> tuple[int, bytes]:
        """Returns the status and, with `read`, the body of the answer. Raises DeliveryFailed if there is no answer."""
        try:
            self._policy.check_url(url)
            async with self._session.request(
                method, url, headers=headers, data=body, params=params, allow_redirects=False
            ) as response:
                return response.status, await _limited(response) if read else b""
        except AddressRefused as error:
            raise DeliveryFailed(f"{error}; the operator can allow it (FTF_GATEWAY_WEBHOOK_ALLOW)") from error
        except TimeoutError as error:
            raise DeliveryFailed(f"no answer within {self._timeout_seconds:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise DeliveryFailed("no answer: ", said=_described(error)) from error

    async def close(self) -> None:
        await self._session.close()
        # Connections with TLS are closed by the next turn of the loop.
        await asyncio.sleep(0)


async def _limited(response: aiohttp.ClientResponse) -> bytes:
    body = await response.content.read(_MAX_ANSWER_BYTES + 1)
    while len(body) <= _MAX_ANSWER_BYTES and (more := await response.content.read(_MAX_ANSWER_BYTES)):
        body += more
    if len(body) > _MAX_ANSWER_BYTES:
        raise DeliveryFailed(f"the answer is larger than {_MAX_ANSWER_BYTES:,} bytes", http_status=response.status)
    return body


def _described(error: Exception) -> str:
    cause: Any = getattr(error, "os_error", None) or error
    return f"{type(cause).__name__}: {cause}"
