"""The settings with which a gateway refuses to start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.settings import GatewaySettings


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.0.0.7", "gateway.internal", "127.0.0.1.example.org"])  # noqa: S104
def test_public_listener_needs_tls(host: str) -> None:
    """Keys would travel in the clear."""
    with pytest.raises(ValidationError, match="FTF_GATEWAY_TLS_CERT"):
        GatewaySettings(listen=f"{host}:7460")
    GatewaySettings(listen=f"{host}:7460", tls_cert=Path("cert.pem"), tls_key=Path("key.pem"))
    GatewaySettings(listen=f"{host}:7460", insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "127.1.2.3"])
def test_loopback_listener_needs_no_tls(host: str) -> None:
    assert GatewaySettings(listen=f"{host}:7460").tls_cert is None


@pytest.mark.parametrize("given", [{"tls_cert": "cert.pem"}, {"tls_key": "key.pem"}, {"service_cert": "cert.pem"}])
def test_incomplete_pair_is_refused(given: dict[str, str]) -> None:
    """It would be taken for none, and the gateway would serve without TLS."""
    with pytest.raises(ValidationError, match="belong together"):
        GatewaySettings.model_validate(given)


def test_start_with_invalid_settings_names_them_and_not_their_values(tmp_path: Path) -> None:
    """Instead of a sentence, operators read a traceback with the password of the database."""
    settings = {
        "FTF_HOME": str(tmp_path),
        "FTF_GATEWAY_LEASE_SECONDS": "hunter2",
        "FTF_GATEWAY_DATABASE_URL": "postgresql://user:hunter2@127.0.0.1:1/ftf",
    }
    refused = start(settings)
    assert refused == "gateway: FTF_GATEWAY_LEASE_SECONDS (or FTF_LEASE_SECONDS): Input should be a valid number, " + (
        "unable to parse string as a number"
    )
    del settings["FTF_GATEWAY_LEASE_SECONDS"]
    written = start(settings | {"FTF_GATEWAY_OIDC_ALGORITHMS": "hunter2"})
    assert (
        written
        == 'gateway: FTF_GATEWAY_OIDC_ALGORITHMS (or FTF_OIDC_ALGORITHMS) must be JSON, in the form ["NAME"] or []'
    )
    assert start(settings).startswith("gateway: the database postgresql://user:***@127.0.0.1:1/ftf cannot be opened")


def start(settings: dict[str, str]) -> str:
    gateway = [sys.executable, "-m", "gateway"]
    ended = subprocess.run(gateway, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    return ended.stderr.strip()
