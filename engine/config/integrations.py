"""Settings of the services that follow a job: webhooks and trackers."""

from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from engine.config.section import NAME_PATTERN, Section
from finetuneflow.v1.event_pb2 import Event

MAX_INTEGRATIONS: Final = 16
"""Most integrations of one job."""
DEFAULT_EXPERIMENT: Final = "finetuneflow"
DEFAULT_PROJECT: Final = "finetuneflow"
_MARKS: Final = "/\\#?%:"
"""Characters that Weights & Biases refuses in names of projects."""
DEFAULT_KINDS: Final = ("state_changed",)
_KINDS: Any = sorted(field.name for field in Event.DESCRIPTOR.oneofs_by_name["payload"].fields)


def _valid_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isprintable() or " " in url:
        raise ValueError("it must be a URL such as https://host/path")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL is stored with the job, so it must have no user; use a secret")
    if parts.fragment:
        raise ValueError("a fragment (`#…`) is never sent; remove it")
    return url


def _valid_path_name(name: str) -> str:
    if not name.isprintable() or name.strip() != name or name in (".", "..") or any(mark in name for mark in _MARKS):
        raise ValueError(f"it must have none of {_MARKS}, no line breaks, and no spaces at its ends")
    return name


def _known_kind(kind: str) -> str:
    if kind not in _KINDS:
        raise ValueError(f"there is no such kind of event; kinds: {', '.join(_KINDS)}")
    return kind


Url = Annotated[str, Field(max_length=2048), AfterValidator(_valid_url)]
SecretName = Annotated[str, Field(pattern=NAME_PATTERN)]
Title = Annotated[str, Field(min_length=1, max_length=256)]
PathName = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_valid_path_name)]
"""Part of a run's address at Weights & Biases."""


class Webhook(Section):
    """Signed requests to a URL."""

    url: Url
    secret: SecretName
    kinds: list[Annotated[str, AfterValidator(_known_kind)]] = Field(default=[*DEFAULT_KINDS], max_length=len(_KINDS))


class Tensorboard(Section):
    """Event files of TensorBoard."""


class Mlflow(Section):
    """A run on an MLflow server."""

    tracking_uri: Url
    experiment: Title = DEFAULT_EXPERIMENT
    run_name: Title | None = None
    """None: the job's display_name."""
    username: Title | None = None
    secret: SecretName | None = None
    """Its value is the user's password or, without username, a bearer token."""

    @model_validator(mode="after")
    def _user_has_a_password(self) -> Self:
        if self.username is not None and self.secret is None:
            raise ValueError("username needs secret, the name of the secret with the user's password")
        return self


class Wandb(Section):
    """A run at Weights & Biases."""

    project: PathName = DEFAULT_PROJECT
    run_name: Title | None = None
    """None: the job's display_name."""
    secret: SecretName | None = None
    """Its value is the API key."""
    entity: PathName | None = None
    """None: the default one of the key."""
    base_url: Url | None = None
    """None: https://api.wandb.ai."""
    offline: bool = False

    @model_validator(mode="after")
    def _has_a_key_if_it_is_sent(self) -> Self:
        if not self.offline and self.secret is None:
            raise ValueError("secret is required, the name of the secret with the API key; or set offline = true")
        unused = [name for name in ("secret", "base_url") if getattr(self, name) is not None]
        if self.offline and unused:
            raise ValueError(f"offline sends nothing; remove {' and '.join(unused)}")
        return self


class Integration(Section):
    """One service that follows the job."""

    webhook: Webhook | None = None
    tensorboard: Tensorboard | None = None
    mlflow: Mlflow | None = None
    wandb: Wandb | None = None

    @model_validator(mode="after")
    def _names_one_service(self) -> Self:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError(f"an integration is one of {', '.join(type(self).model_fields)}; set one of them")
        return self
