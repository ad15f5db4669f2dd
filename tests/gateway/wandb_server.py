"""A stand-in of Weights & Biases' server for tests: GraphQL and the stream of a run's files.

It answers Weights & Biases' own library as well, which `test_wandb.py` tries where the library is installed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

KEY = "k" * 40
ENTITY = "my-team"
"""Entity of the key, where a request names none."""
_EXIT_STATES = {0: "finished", 255: "killed"}


@dataclass
class Run:
    """A run as the server keeps it."""

    display_name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    files: dict[str, dict[int, str]] = field(default_factory=dict)
    """File → number of the line → line: a line that is sent again replaces itself."""
    state: str = "running"
    """As the web page shows it."""

    @property
    def history(self) -> list[dict[str, Any]]:
        lines = self.files.get("wandb-history.jsonl", {})
        assert sorted(lines) == list(range(len(lines))), "a line is missing"
        return [json.loads(lines[number]) for number in sorted(lines)]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.files.get("wandb-summary.json", {})
        return dict(json.loads(lines[max(lines)])) if lines else {}

    def curve(self, name: str) -> list[tuple[int, Any]]:
        """The points of a metric with their training steps, in the order of the lines."""
        return [(line["global_step"], line[name]) for line in self.history if name in line]


@dataclass
class WandbServer:
    """Runs by entity, project and id, and how the next requests are answered."""

    port: int = 0
    answers: list[int] = field(default_factory=list)
    """Status of the next answers; 0 closes the connection after the request was carried out, so that its answer is
    lost. Then requests succeed."""
    runs: dict[tuple[str, str, str], Run] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    """Ids of runs that were deleted; no other run gets such an id."""
    requests: list[str] = field(default_factory=list)
    """Names of GraphQL operations, and `file_stream`."""
    heartbeats: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def delete(self, run_id: str) -> None:
        self.runs = {key: run for key, run in self.runs.items() if key[2] != run_id}
        self.deleted.add(run_id)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60), self.changed:
            await self.changed.wait_for(condition)

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        _, _, credentials = request.headers.get("authorization", "").partition("Basic ")
        if base64.b64decode(credentials).rpartition(b":")[2].decode() != KEY:
            return web.json_response({"error": "invalid API key"}, status=401)
        status = self.answers.pop(0) if self.answers else 200
        if status not in (0, 200):
            async with self.changed:
                self.requests.append(str(status))
                self.changed.notify_all()
            return web.json_response({"errors": [{"message": f"told to answer {status}"}]}, status=status)
        asked = json.loads(body or b"{}")
        async with self.changed:
            answer = self._graphql(asked) if request.path == "/graphql" else self._stream(request, asked)
            self.changed.notify_all()
        # As the proxy before api.wandb.ai does for those that accept it.
        answer.enable_compression()
        if status == 0 and request.transport is not None:
            request.transport.abort()
        return answer

    def _graphql(self, asked: dict[str, Any]) -> web.Response:
        query, given = asked["query"], asked.get("variables") or {}
        operation = query.split("(")[0].split("{")[0].split()[-1]
        self.requests.append(operation)
        entity, project, name = given.get("entity") or ENTITY, given.get("project"), given.get("name")
        if operation == "RunResumeStatus":
            run = self.runs.get((entity, project, name))
            if run is None and not any(key[:2] == (entity, project) for key in self.runs):
                return web.json_response({"data": {"model": None}})
            bucket = None if run is None else self._bucket(entity, project, name, run)
            model = {"id": project, "name": project, "entity": {"id": entity, "name": entity}, "bucket": bucket}
            return web.json_response({"data": {"model": model}})
        if operation == "UpsertBucket":
            if name in self.deleted:
                problem = f"run {name} was previously created and deleted; try a new run name"
                return web.json_response({"errors": [{"message": problem}]}, status=409)
            inserted = (entity, project, name) not in self.runs
            run = self.runs.setdefault((entity, project, name), Run())
            run.display_name = given.get("displayName") or run.display_name or name
            if given.get("config") is not None:
                run.config = json.loads(given["config"])
            if given.get("tags") is not None:
                run.tags = given["tags"]
            answer = {"bucket": self._bucket(entity, project, name, run), "inserted": inserted}
            return web.json_response({"data": {"upsertBucket": answer}})
        if operation == "Viewer":
            return web.json_response({"data": {"viewer": {"id": "1", "entity": ENTITY, "username": ENTITY}}})
        return web.json_response({"errors": [{"message": f"Cannot query field of {operation}"}]})

    def _bucket(self, entity: str, project: str, name: str, run: Run) -> dict[str, Any]:
        config = run.config.get("_wandb", {}).get("value", {})
        return {
            "id": f"{entity}/{project}/{name}",
            "name": name,
            "displayName": run.display_name,
            "config": json.dumps(run.config),
            "wandbConfig": json.dumps({key: config[key] for key in ("t",) if key in config}),
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.files.get("wandb-history.jsonl", {})),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(line) for line in run.history[-1:]]),
            "eventsTail": "[]",
            "tags": run.tags,
            "project": {"id": project, "name": project, "entity": {"id": entity, "name": entity}},
        }

    def _stream(self, request: web.Request, asked: dict[str, Any]) -> web.Response:
        self.requests.append("file_stream")
        place = request.match_info
        run = self.runs.get((place["entity"], place["project"], place["run"]))
        if run is None:
            return web.json_response({"error": "run not found"}, status=404)
        self.heartbeats += not asked
        for file, written in asked.get("files", {}).items():
            lines = run.files.setdefault(file, {})
            lines |= dict(enumerate(written["content"], written["offset"]))
        if asked.get("complete"):
            run.state = _EXIT_STATES.get(asked["exitcode"], "failed")
        return web.json_response({"exitcode": None, "limits": {}})


@contextlib.asynccontextmanager
async def serving_wandb(server: WandbServer) -> AsyncIterator[WandbServer]:
    """Serves on the server's port, or on a free one."""
    app = web.Application(client_max_size=16 << 20)
    app.router.add_post("/graphql", server.handle)
    app.router.add_post("/files/{entity}/{project}/{run}/file_stream", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", server.port, reuse_address=True)
    await site.start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        await runner.cleanup()
