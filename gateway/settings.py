"""Settings of a gateway: `FTF_GATEWAY_<KEY>`."""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, SecretStr, model_validator
from sqlalchemy.engine import URL, make_url

from chassis.settings import ProcessSettings
from finetuneflow.connection import is_loopback
from gateway.access.call_limits import CallLimits
from gateway.outbound_addresses import AddressPolicy
from gateway.quotas import DefaultLimits


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
    upload_stall_seconds: float = Field(default=60.0, gt=0)
    """An upload that receives nothing for longer is ended."""
    max_uploads: int = Field(default=64, ge=1)
    """Maximum number of uploads at once. An idle one holds about 2 MiB of memory."""
    max_uploads_per_tenant: int = Field(default=16, ge=1)
    """Maximum number of uploads at once of one tenant."""
    max_live_jobs_per_tenant: int = Field(default=1000, ge=0)
    """Maximum number of jobs, evaluations and exports of a tenant that have not ended. An operator may give a tenant
    another limit; that holds for the following three too."""
    max_datasets_per_tenant: int = Field(default=10_000, ge=0)
    max_secrets_per_tenant: int = Field(default=1000, ge=0)
    max_keys_per_tenant: int = Field(default=1000, ge=1)
    """Those that have not ended."""
    """Maximum number of datasets of a tenant."""
    max_stored_bytes_per_tenant: int = Field(default=10 << 40, ge=0)
    """Maximum size of a tenant's datasets, checkpoints and artifacts, in bytes."""
    max_gpu_seconds_per_day_per_tenant: int | None = Field(default=None, ge=0)
    """Maximum GPU time of a tenant's trainings in the last 24 hours, in seconds. None: unlimited."""
    max_downloads: int = Field(default=64, ge=1)
    """Maximum number of downloads at once."""
    max_watches: int = Field(default=2000, ge=1)
    """Maximum number of watches at once. An idle one holds about 25 KB of memory."""
    max_questions: int = Field(default=64, ge=1)
    """Number of calls at once that a probe or an evaluator answers (validation, preview, estimate, recommendation,
    preflight and generation), above which calls of a tenant that has its share are refused: this number divided by that
    of the tenants with such calls."""
    calls_per_second: float = Field(default=200.0, gt=0)
    """Rate at which one caller (an API key, or a user of the identity provider) may call for long. An insecure gateway
    can't tell callers apart and does not limit it."""
    call_burst: int = Field(default=1000, ge=1)
    """Number of calls that a caller may make at once above that rate."""
    max_message_bytes: int = Field(default=4 << 20, ge=2 << 20, lt=2**31)
    """Largest message that is received, in bytes. A chunk of an upload needs a little more than 1 MiB."""
    max_streams_per_connection: int = Field(default=4096, ge=1, lt=2**31)
    """Maximum number of calls at once on one connection. Further calls wait in the client without being told why: it
    should be larger than the limits above."""
    connection_age_seconds: int = Field(default=86_400, ge=1, le=2_000_000)
    """Connections are closed at this age, give or take a tenth, so that clients spread over gateways anew. Running
    calls may go on for `connection_grace_seconds`; SDK clients continue their watches and uploads after that."""
    connection_grace_seconds: int = Field(default=3_600, ge=1, le=2_000_000)
    tensorboard_dir: Path | None = None
    """Folder for event files of TensorBoard: tenant/job/integration. Delivery processes that share deliveries need a
    shared one. Default: `tensorboard` under home."""
    webhook_allow: tuple[str, ...] = ()
    """Host names, addresses and networks, each with `:port` or without, that webhooks and trackers may reach although
    they are not public, or without https; as JSON. Gateways and delivery processes need the same."""

    @property
    def tenant_limits(self) -> DefaultLimits:
        return DefaultLimits(
            max_live_jobs=self.max_live_jobs_per_tenant,
            max_datasets=self.max_datasets_per_tenant,
            max_stored_bytes=self.max_stored_bytes_per_tenant,
            max_gpu_seconds_per_day=self.max_gpu_seconds_per_day_per_tenant,
            max_secrets=self.max_secrets_per_tenant,
            max_keys=self.max_keys_per_tenant,
        )

    @property
    def call_limits(self) -> CallLimits:
        return CallLimits(
            max_watches=self.max_watches,
            max_uploads=self.max_uploads,
            max_uploads_per_tenant=self.max_uploads_per_tenant,
            max_downloads=self.max_downloads,
            max_questions=self.max_questions,
            calls_per_second=self.calls_per_second,
            call_burst=self.call_burst,
        )

    @property
    def grpc_options(self) -> list[tuple[str, int]]:
        """Options of the gRPC server, beside those of every process."""
        return [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_concurrent_streams", self.max_streams_per_connection),
            ("grpc.max_connection_age_ms", self.connection_age_seconds * 1000),
            ("grpc.max_connection_age_grace_ms", self.connection_grace_seconds * 1000),
        ]

    @model_validator(mode="after")
    def _addresses_are_readable(self) -> Self:
        AddressPolicy(self.webhook_allow)
        return self

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
