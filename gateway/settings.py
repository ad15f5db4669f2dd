"""Settings of a gateway: `FTF_GATEWAY_<KEY>`."""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, SecretStr, model_validator
from sqlalchemy.engine import URL, make_url

from chassis.server.listen_address import is_loopback
from chassis.settings import ProcessSettings


class GatewaySettings(ProcessSettings):
    """Settings of a gateway, beside those of every process."""

    service: ClassVar[str] = "gateway"

    listen: str = "127.0.0.1:7460"
    database_url: str = ""
    """`sqlite:///path` or `postgresql://…`. Default: `gateway.sqlite` under home."""
    models: dict[str, Path] = Field(default_factory=dict)
    """The operator's base models: alias → folder with safetensors."""
    lease_seconds: float = Field(default=15.0, gt=0)
    """A claim whose worker reports nothing for longer expires."""
    operator_key_file: Path | None = None
    """File with an API key that is made an operator's key; created with a new key if it does not exist."""
    secrets_key_file: Path | None = None
    """File with the keys that encrypt secrets, one a line; created with a new key if it does not exist. All gateways of
    a system need the same keys. Default: `secrets.key` under home."""
    secrets_keys: SecretStr = SecretStr("")
    """The keys themselves, separated by commas, instead of the file."""
    auth_failures_per_minute: int = Field(default=20, ge=1)
    """Calls with wrong credentials that are read from one network address; more are refused for up to a minute."""
    oidc_issuer: str = ""
    """URL of an OpenID Connect provider whose tokens are accepted beside API keys; "": none."""
    oidc_audience: str = "finetuneflow"
    """A value that the `aud` of its tokens must contain."""
    oidc_algorithms: tuple[str, ...] = ("RS256", "ES256")
    """Signature algorithms that are accepted, as JSON."""
    oidc_tenant_claim: str = "tenant"
    """Claim with the caller's tenant, which must exist."""
    oidc_role_claim: str = "role"
    """Claim with the caller's role: reader, member or operator, or a list, of which the highest counts."""
    tls_cert: Path | None = None
    """PEM file with the certificate that callers see. It is read again when it was renewed."""
    tls_key: Path | None = None
    """PEM file with the key of that certificate."""
    max_dataset_bytes: int = Field(default=64 << 30, gt=0)
    """Largest file that UploadDataset accepts, in bytes."""

    @model_validator(mode="after")
    def _callers_are_safe(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together: set both or none")
        if self.tls_cert is None and not is_loopback(self.listen) and not self.insecure:
            raise ValueError(
                f"keys would travel unencrypted to {self.listen}: set FTF_GATEWAY_TLS_CERT and FTF_GATEWAY_TLS_KEY, or "
                "FTF_GATEWAY_INSECURE=true on a closed network, which also lets everybody in"
            )
        return self

    @property
    def database(self) -> URL:
        # Made of its parts: in a URL that is text, `%`, `#` and `?` of a folder's name would mean something else.
        if not self.database_url:
            return URL.create("sqlite", database=str(self.home / "gateway.sqlite"))
        return make_url(self.database_url)
