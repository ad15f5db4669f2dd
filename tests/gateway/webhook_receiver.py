"""A receiver of webhooks for tests. It verifies signatures by code of its own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


@dataclass
class Receiver:
    """Requests that were received, and how the next requests are answered."""

    port: int = 0
    answers: list[int] = field(default_factory=list)
    """Status of the next answers; 0 never answers. Then 204."""
    ids: list[str] = field(default_factory=list)
    accepted: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the requests that were answered with 204, in order."""
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def sequences(self) -> list[int]:
        return [int(each["data"]["sequence"]) for each in self.accepted]

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(30), self.changed:
            await self.changed.wait_for(condition)

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        id_, timestamp = request.headers["webhook-id"], request.headers["webhook-timestamp"]
        expected = hmac.new(KEY, b"%s.%s.%s" % (id_.encode(), timestamp.encode(), body), hashlib.sha256).digest()
        version, _, given = request.headers["webhook-signature"].partition(",")
        assert version == "v1" and hmac.compare_digest(base64.b64decode(given), expected)
        status = self.answers.pop(0) if self.answers else 204
        async with self.changed:
            self.ids.append(id_)
            if status == 204:
                self.accepted.append(json.loads(body))
            self.changed.notify_all()
        if not status:
            await asyncio.Event().wait()
        return web.Response(status=status, headers={"location": "http://127.0.0.1:1/"} if status == 302 else {})


@contextlib.asynccontextmanager
async def receiving(receiver: Receiver) -> AsyncIterator[Receiver]:
    """Serves on the receiver's port, or on a free one."""
    app = web.Application()
    app.router.add_post("/hook", receiver.handle)
    runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", receiver.port, reuse_address=True)
    await site.start()
    receiver.port = runner.addresses[0][1]
    try:
        yield receiver
    finally:
        await runner.cleanup()
