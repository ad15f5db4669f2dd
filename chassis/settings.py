"""Settings of every process. `FTF_<SERVICE>_<KEY>` takes precedence over `FTF_<KEY>`, which does over the default."""

from __future__ import annotations

import re
import secrets
import socket
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_origin

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from chassis.security.certificates import CertificateFiles
from chassis.security.identity import Identity

NodeId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,80}$")]
Token = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")]


class ProcessSettings(BaseSettings):
    """Base class of a service's settings: a subclass sets `service` and adds fields."""

    model_config = SettingsConfigDict(env_prefix="FTF_", extra="ignore", frozen=True)

    service: ClassVar[str]
    """gateway, probe, trainer, evaluator or exporter."""

    home: Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())] = Field(
        default=Path("~/.finetuneflow"), validate_default=True
    )
    """Folder for this process's data on its machine."""
    listen: str = "127.0.0.1:0"
    """host:port of the gRPC server; port 0 selects a free port."""
    service_cert: Path | None = None
    """PEM file with this process's certificate, which names its service. Needs service_key and service_ca."""
    service_key: Path | None = None
    """PEM file with the key of that certificate."""
    service_ca: Path | None = None
    """PEM file with the authority that signs the certificates of all processes and of the broker."""
    insecure: bool = False
    """Serves anybody who reaches the port: no TLS, no certificates, no keys. For tests and closed networks."""
    advertise: str = ""
    """host:port at which other processes reach that server. Default: the address it listens on."""
    nats_url: str = "nats://127.0.0.1:4222"
    """One URL, or several separated by commas."""
    nats_user: str = ""
    nats_password: SecretStr = SecretStr("")
    artifacts_url: str = ""
    """An fsspec URL. Default: `file://<home>/artifacts`."""
    node_id: NodeId = ""
    """Unique among running processes. Default: service, host name and four random digits."""
    metrics: str = ""
    """host:port on which metrics are served for Prometheus; "": not served. There is no authentication."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_json: bool = False

    @classmethod
    def of_environment(cls) -> Self:
        """Reads the settings. Exits with status 1 and a line for each invalid one, without the values."""
        try:
            return cls()
        except ValidationError as error:
            lines = []
            for problem in error.errors(include_input=False, include_url=False):
                name = "_".join(str(part) for part in problem["loc"][:1]).upper()
                variable = f"FTF_{cls.service.upper()}_{name} (or FTF_{name}): " if name else ""
                lines.append(f"{cls.service}: {variable}{problem['msg'].removeprefix('Value error, ')}")
            sys.exit("\n".join(lines))
        except SettingsError as error:
            # Its message names the field, and no value.
            field = re.search(r'field "(\w+)"', str(error))
            if not field:
                sys.exit(f"{cls.service}: {error}")
            name = field[1].upper()
            variable = f"FTF_{cls.service.upper()}_{name} (or FTF_{name})"
            written = (
                '["NAME"] or []' if get_origin(cls.model_fields[field[1]].annotation) is tuple else '{"NAME": "…"}'
            )
            sys.exit(f"{cls.service}: {variable} must be JSON, in the form {written}")

    @model_validator(mode="before")
    @classmethod
    def _derived(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("node_id"):
            host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:40]
            values["node_id"] = f"{cls.service}-{host}-{secrets.token_hex(2)}"
        return values

    @model_validator(mode="after")
    def _identity_is_whole(self) -> Self:
        given = [path is not None for path in (self.service_cert, self.service_key, self.service_ca)]
        if any(given) and not all(given):
            raise ValueError("service_cert, service_key and service_ca belong together: set all of them or none")
        return self

    @property
    def identity(self) -> Identity | None:
        """This process's identity towards the others; None if it has no certificate."""
        if self.service_cert is None or self.service_key is None or self.service_ca is None:
            return None
        return Identity(CertificateFiles(self.service_cert, self.service_key, self.service_ca))

    @property
    def artifacts(self) -> str:
        """URL of the artifact store."""
        return self.artifacts_url or (self.home / "artifacts").as_uri()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        own = EnvSettingsSource(settings_cls, env_prefix=f"FTF_{cls.service.upper()}_")
        return init_settings, own, env_settings


class WorkerSettings(ProcessSettings):
    """Settings of a process that runs a stage."""

    pool: Token = "default"
    """Pool from which work is pulled."""
    slots: int = Field(default=1, ge=1, le=64)
    """Maximum number of attempts that run at once."""
    cancel_grace_seconds: float = Field(default=2.0, ge=0)
    """Time that a cancelled child gets to exit before it is killed."""
    drain_seconds: float = Field(default=60.0, ge=0)
    """Time that a drain gives children to write a checkpoint before it kills them."""
    stall_seconds: float = Field(default=300.0, gt=0)
    """A child that emits nothing for longer is killed (STALLED)."""
    loading_stall_seconds: float = Field(default=600.0, gt=0)
    """The same limit while the child starts and in phases named loading_…"""
    preparation_stall_seconds: float = Field(default=600.0, gt=0)
    """A preparation, mostly downloads, that receives nothing for longer is ended (STALLED)."""
    warm_spare: bool = True
    """Keep a child of a probe or trainer that has completed its imports (trainer: about 480 MB), so that an attempt
    starts sooner. None is kept while a child computes on the CPU. A probe that was asked about data keeps another one
    for the next request."""
    child_confinement: Literal["available", "required"] = "available"
    """Children read their inputs, write their folder and use no network. "required": a process whose kernel cannot
    enforce all of it does not start; "available": it logs what is missing."""
    child_file_bytes: int = Field(default=256 << 30, gt=0)
    """Largest file that a child can write."""
    child_memory_bytes: int = Field(default=0, ge=0)
    """Memory that each process of a child can reserve for writing, without a GPU's; 0: unlimited. Set it well above
    what jobs use: a child that reaches it fails as HOST_OUT_OF_MEMORY."""
