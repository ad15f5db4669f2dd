"""The settings with which a gateway refuses to start."""

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
