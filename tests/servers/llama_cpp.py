"""llama.cpp's server with one model: its process, and what a test asks it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from standalone.guard import guarded

FOLDERS = sorted((Path(__file__).parents[2] / ".tools").glob("xllamacpp-*"))


class LlamaCppServer:
    """A server on a free port of this machine, in a process of its own."""

    def __init__(self, model: Path, log: Path) -> None:
        """`model` is a GGUF file."""
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                guarded([sys.executable, __file__, str(FOLDERS[-1]), str(model)]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
            )
        assert self._process.stdout
        self._url = self._process.stdout.readline().strip()
        if not self._url:
            raise RuntimeError(log.read_text(errors="replace"))

    def ask(self, path: str, message: dict[str, Any]) -> Any:
        """Posts a message, and returns the answer."""
        request = urllib.request.Request(  # noqa: S310 - the address is the server's own
            self._url + path, json.dumps(message).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
            return json.load(answer)

    def stop(self) -> None:
        """Ends the process."""
        self._process.communicate("\n")


def main(folder: str, model: str) -> None:
    """Serves until a line on stdin, and writes the address to stdout."""
    sys.path.insert(0, folder)
    import xllamacpp  # type: ignore[import-not-found, unused-ignore]

    settings = xllamacpp.CommonParams()
    settings.model.path = model
    settings.n_ctx = 512
    settings.n_parallel = 1
    settings.cpuparams.n_threads = 1
    # A free one.
    settings.port = 0
    settings.warmup = False
    # Otherwise it changes the size of the context by the free memory.
    settings.fit_params = False
    server = xllamacpp.Server(settings)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
