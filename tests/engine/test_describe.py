"""The description of a model without its weights, from a folder and from a hub that serves headers only."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from engine.catalogue import Catalogue
from engine.errors import JobError
from engine.estimate.architecture import Architecture
from tests.tiny_models import make_tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A model hub with one model, which counts the bytes of weights that it serves."""

    def __init__(self, folder: Path) -> None:
        self.weight_bytes = 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                if self.path.startswith("/api/models/org/tiny"):
                    names = [{"rfilename": file.name} for file in folder.iterdir()]
                    self.give(json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": names}).encode(), body)
                    return
                found = re.fullmatch(rf"/org/tiny/resolve/{COMMIT}/([\w.]+)", self.path)
                if not found or not (folder / found[1]).is_file():
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound" if found else "RepoNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                data = (folder / found[1]).read_bytes()
                if wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                    data = data[int(wanted[1]) : int(wanted[2]) + 1]
                if body and found[1].endswith(".safetensors"):
                    hub.weight_bytes += len(data)
                self.give(data, body, partial=wanted is not None)

            def give(self, data: bytes, body: bool, *, partial: bool = False) -> None:
                self.send_response(206 if partial else 200)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", '"1"')
                self.end_headers()
                if body:
                    self.wfile.write(data)

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", num_layers=12)


@pytest.fixture
def hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(model)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield hub
    hub.server.shutdown()


def test_folder_of_operator_is_described(model: Path, tmp_path: Path) -> None:
    described = Catalogue(tmp_path, {"mine": model}).describe("mine")
    assert described.config["model_type"] == "llama"
    assert described.shapes["model.embed_tokens.weight"] == (384, 64)


def test_a_model_on_the_hub_is_described_by_its_headers(hub: Hub, model: Path, tmp_path: Path) -> None:
    """An estimate for 70 billion parameters must not download 140 GB first."""
    described = Catalogue(tmp_path).describe("org/tiny")
    assert Architecture.of_tensors(described.config, described.shapes) == Architecture.of_folder(model)
    # The hub's client asks for the first 100,000 bytes, in which the header is.
    assert hub.weight_bytes <= 100_001 < (model / "model.safetensors").stat().st_size
    assert not any(tmp_path.rglob("*.safetensors"))


def test_missing_model_is_refused(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        Catalogue(tmp_path).describe("org/other")
    assert caught.value.reason == "MODEL_NOT_FOUND"
