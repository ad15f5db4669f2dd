"""Decides with which token a repository of the hub is read: the job's own, or the operator's if it is on his list."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pydantic import SecretStr

from engine.errors import JobError, Violation
from engine.hub import HubToken
from finetuneflow.v1.work_pb2 import Assignment
from services.settings import ServiceSettings


@dataclass(frozen=True)
class HubAccess:
    """The tokens that one job or query may use. `token` is a `TokenOf` of the engine."""

    secret: str = ""
    """Name of the secret with the job's own token; "": the job names none."""
    own: SecretStr | None = None
    """The job's own token; None if the gateway gave none."""
    operator: SecretStr | None = None
    repositories: Sequence[str] = ()
    """Repositories for which the operator's token serves callers without one of their own: `org/name`, `org/*`, `*`."""
    otherwise: HubToken = False

    def token(self, repository: str) -> HubToken:
        """Returns the token for a model or dataset `org/name`. A job with a token of its own never uses another.

        Raises JobError: SECRET_MISSING, HUB_TOKEN_REFUSED.
        """
        if self.secret:
            return token_of_secret(self.secret, self.own, "hub_token")
        value = self.operator.get_secret_value() if self.operator else ""
        if value and any(fnmatchcase(repository, pattern) for pattern in self.repositories):
            if not _is_token(value):
                message = "The operator's hub token is no token: it has characters that a token cannot have."
                raise JobError("HUB_TOKEN_REFUSED", message, "Ask the operator to correct FTF_HUB_TOKEN.")
            return value
        return self.otherwise


def token_of_secret(secret: str, value: SecretStr | None, use: str) -> str:
    """Returns the token in a secret of the tenant. `value` is None if the gateway gave none; `use` is that of the spec.

    Raises JobError: SECRET_MISSING, HUB_TOKEN_REFUSED.
    """
    field = f"spec.secrets.{use}"
    again = f"Set it again with `ftf secrets set {secret}`, then create the job again."
    if value is None:
        message = f"The secret {secret!r} was deleted since the job was created, or cannot be decrypted."
        raise JobError("SECRET_MISSING", message, again, [Violation(field, message)])
    token = value.get_secret_value()
    if not _is_token(token):
        message = f"The secret {secret!r} is no token of the hub: it has spaces, line ends or the like."
        raise JobError("HUB_TOKEN_REFUSED", message, again, [Violation(field, message)])
    return token


def job_access(settings: ServiceSettings, assignment: Assignment, secrets: Mapping[str, SecretStr]) -> HubAccess:
    """Returns the access of a job: its own token if it names one, otherwise what every caller has."""
    name = assignment.merged_spec.secrets.get("hub_token", "")
    return HubAccess(name, secrets.get(name), settings.hub_token, settings.hub_token_repositories)


def every_callers_access(settings: ServiceSettings) -> HubAccess:
    """Returns the access of a call to a server, which has no secrets."""
    return HubAccess(operator=settings.hub_token, repositories=settings.hub_token_repositories)


def operators_access(settings: ServiceSettings) -> HubAccess:
    """Returns the access of whoever runs a query on his own machine, without a server."""
    return HubAccess(operator=settings.hub_token, repositories=["*"], otherwise=None)


def _is_token(value: str) -> bool:
    # The HTTP client quotes a header that it cannot send in its exception, which becomes an event of the job.
    return re.fullmatch(r"[\x21-\x7e]+", value) is not None
