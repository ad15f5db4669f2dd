"""A model hub on this machine: one folder as `org/tiny`, and names it refuses as the real one does."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS = {"org/gated": (403, "GatedRepo"), "org/unknown": (404, "RepoNotFound")}


class Hub:
    """`sent` says how many bytes of which file went out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent: dict[str, int] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, self.path.partition("?")[0].strip("/"), body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, self.path.partition("?")[0].strip("/"), body=False)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler, path: str, *, body: bool) -> None:
        for name, (status, code) in REFUSALS.items():
            if name in path:
                self._send(request, status, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, body=body)
                return
        files = [file for file in sorted(self.folder.iterdir()) if file.is_file()]
        if path.startswith("api/models/org/tiny/tree/"):
            listed = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in files]
            self._send(request, 200, json.dumps(listed).encode(), {"Content-Type": "application/json"}, body=body)
            return
        if path.startswith("api/models/org/tiny"):
            siblings = [{"rfilename": file.name} for file in files]
            info = {"id": "org/tiny", "sha": COMMIT, "siblings": siblings, "private": False, "gated": False}
            self._send(request, 200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body=body)
            return
        file = self.folder / path.rpartition("/")[2]
        if not path.startswith("org/tiny/resolve/") or not file.is_file():
            self._send(request, 404, b"{}", {"X-Error-Code": "EntryNotFound"}, body=body)
            return
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}  # noqa: S324
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
    def serving(self) -> Iterator[None]:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()
