"""A hub on this machine: models, datasets by commit, and names it refuses as the real one does."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.fakes.hub_writes import Dropped, HubWrites

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS = {"org/gated": (403, "GatedRepo"), "org/unknown": (404, "RepoNotFound")}


class Hub:
    """`folder` is the model `org/tiny`, `models` are others by id; `datasets`: id → commit → folder, the last commit
    being `main`; `cards` is what their cards declare. `sent` says how many bytes of which file went out;
    `before_sending` is called with a model's id before its weights do. `tokens` is what a private dataset asks for.
    `readers` are the tokens that may read the models once they are gated, `checks` the tokens about which the hub was
    asked; `expired` ones are refused. `writes` has the repositories that can be pushed to."""

    def __init__(
        self,
        folder: Path,
        datasets: Mapping[str, dict[str, Path]] | None = None,
        models: Mapping[str, Path] | None = None,
    ) -> None:
        self.models = {"org/tiny": folder, **(models or {})}
        self.before_sending: Callable[[str], None] = lambda _model: None
        self.datasets = dict(datasets or {})
        self.cards: dict[str, dict[str, object]] = {}
        self.sent: dict[str, int] = {}
        self.tokens: dict[str, str] = {}
        self.readers: set[str] | None = None
        self.checks: list[str] = []
        self.expired: set[str] = set()
        self.writes = HubWrites()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if not hub.answer_write(self):
                    hub.answer(self, self.path.partition("?")[0].strip("/"), body=True)

            def do_POST(self) -> None:
                hub.answer_write(self)

            do_PUT = do_POST

            def do_HEAD(self) -> None:
                hub.answer(self, self.path.partition("?")[0].strip("/"), body=False)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def answer_write(self, request: BaseHTTPRequestHandler) -> bool:
        """Answers a request that is about a repository that can be pushed to. Returns False for others."""
        try:
            answer = self.writes.serve(request, self.endpoint)
        except Dropped:
            request.close_connection = True
            return True
        if answer is None:
            return False
        status, headers, body = answer
        self._send(request, status, body, headers, body=True)
        return True

    def answer(self, request: BaseHTTPRequestHandler, path: str, *, body: bool) -> None:
        for name, (status, code) in REFUSALS.items():
            if name in path:
                self._send(request, status, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, body=body)
                return
        for dataset, commits in self.datasets.items():
            if f"datasets/{dataset}" in path:
                self._answer_of_dataset(request, path, dataset, commits, body=body)
                return
        if self._refused(request, path, body=body):
            return
        model = "/".join(path.removeprefix("api/models/").split("/")[:2])
        if model not in self.models:
            self._send(request, 404, b"{}", {"X-Error-Code": "EntryNotFound"}, body=body)
            return
        files = [file for file in sorted(self.models[model].iterdir()) if file.is_file()]
        if path.startswith(f"api/models/{model}/tree/"):
            listed = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in files]
            self._send(request, 200, json.dumps(listed).encode(), {"Content-Type": "application/json"}, body=body)
            return
        if path.startswith("api/models/"):
            siblings = [{"rfilename": file.name, "size": file.stat().st_size} for file in files]
            gated = "manual" if self.readers is not None else False
            info = {"id": model, "sha": COMMIT, "siblings": siblings, "private": False, "gated": gated}
            self._send(request, 200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body=body)
            return
        file = self.models[model] / path.rpartition("/")[2]
        if not path.startswith(f"{model}/resolve/") or not file.is_file():
            self._send(request, 404, b"{}", {"X-Error-Code": "EntryNotFound"}, body=body)
            return
        if body and file.suffix == ".safetensors":
            self.before_sending(model)
        self._send_file(request, file, COMMIT, body=body)

    def _refused(self, request: BaseHTTPRequestHandler, path: str, *, body: bool) -> bool:
        """Answers requests that the token decides on. As on the real hub, everybody may read about a gated model."""
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token in self.expired:
            self._send(
                request, 401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"}, body=body
            )
            return True
        asks = path.startswith("api/models/") and path.endswith("/auth-check")
        if asks:
            self.checks.append(token)
        about = path.startswith("api/models/") and not asks
        if self.readers is None or about or token in self.readers:
            if asks:
                self._send(request, 200, b"{}", {}, body=body)
            return asks
        headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model org/tiny is restricted."}
        self._send(request, 403 if token else 401, b"{}", headers, body=body)
        return True

    def _answer_of_dataset(
        self, request: BaseHTTPRequestHandler, path: str, dataset: str, commits: dict[str, Path], *, body: bool
    ) -> None:
        kind, _, rest = path.partition(f"datasets/{dataset}")
        named, _, name = rest.removeprefix("/revision/").removeprefix("/resolve/").partition("/")
        commit = list(commits)[-1] if named in ("", "main") else named
        token = self.tokens.get(dataset)
        if token and request.headers.get("Authorization") != f"Bearer {token}":
            self._send(request, 401, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
        elif commit not in commits:
            self._send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
        elif kind == "api/":
            files = [file for file in sorted(commits[commit].rglob("*")) if file.is_file()]
            siblings = [
                {"rfilename": str(file.relative_to(commits[commit])), "size": file.stat().st_size, "blobId": "0"}
                for file in files
            ]
            info = {"id": dataset, "sha": commit, "siblings": siblings, "private": False, "gated": False, "tags": []}
            info["cardData"] = self.cards.get(dataset)
            self._send(request, 200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body=body)
        else:
            self._send_file(request, commits[commit] / name, commit, body=body)

    def _send_file(self, request: BaseHTTPRequestHandler, file: Path, commit: str, *, body: bool) -> None:
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}  # noqa: S324
        status = 200
        if asked := request.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            end = min(int(last or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
            content, status = content[int(first) : end + 1], 206
        if body:
            self.sent[file.name] = self.sent.get(file.name, 0) + len(content)
        self._send(request, status, content, headers, body=body)

    def _send(
        self, request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str], *, body: bool
    ) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(name, value)
        request.end_headers()
        if body:
            request.wfile.write(content)

    @contextlib.contextmanager
    def asked(self) -> Iterator["Hub"]:
        """Runs `serving`, and makes it the hub of this process."""
        with pytest.MonkeyPatch.context() as patch, self.serving():
            patch.setattr("huggingface_hub.constants.ENDPOINT", self.endpoint)
            template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
            patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
            yield self

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()
