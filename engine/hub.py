"""Translation of the hub client's exceptions to errors of the engine."""

import errno
from collections.abc import Callable
from typing import Literal, TypeAlias

from engine.errors import JobError, SystemFailure, Violation

HubToken: TypeAlias = str | Literal[False] | None
"""A token of the hub. False: none. None: the one with which this machine's user has logged in, if any."""
TokenOf: TypeAlias = Callable[[str], HubToken]
"""Returns the token for a repository `org/name`."""


def anonymous(_repository: str) -> HubToken:
    """Uses no token: only public repositories can be read."""
    return False


def machine_login(_repository: str) -> HubToken:
    """Uses the login of this machine's user, who must be the caller."""
    return None


_HOW_TO_READ = (
    "Store a token of an account that can read it with `ftf secrets set hub` and name it in the job: "
    'secrets.hub_token = "hub". Or ask the operator to add it to FTF_HUB_TOKEN_REPOSITORIES, if his token can read '
    "it. Without a server: set FTF_HUB_TOKEN."
)


def hub_error(error: Exception, kind: Literal["model", "dataset"], hub_id: str, field: str, instead: str) -> Exception:
    """Translates an exception of the hub client.

    Returns JobError MODEL_GATED or MODEL_NOT_FOUND (DATASET_… for a dataset) or HUB_TOKEN_REFUSED with a violation at
    `field`, or SystemFailure HUB_UNREACHABLE, whose advice ends with the alternative `instead`. Any other exception is
    returned unchanged.
    """
    from huggingface_hub import errors

    def refused(reason: str, message: str, advice: str) -> JobError:
        return JobError(reason, message, advice, [Violation(field, message)])

    if isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{hub_id}"
        return refused(
            "MODEL_GATED" if kind == "model" else "DATASET_GATED",
            f"{hub_id} is gated: its owner must grant access first.",
            f"Accept its terms at {page}. {_HOW_TO_READ}",
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError | errors.HFValidationError):
        what = (
            "has no such revision" if isinstance(error, errors.RevisionNotFoundError) else "does not exist on the hub"
        )
        return refused(
            "MODEL_NOT_FOUND" if kind == "model" else "DATASET_NOT_FOUND",
            f"{hub_id} {what}, or is private.",
            f"Check the id. If it is private: {_HOW_TO_READ[0].lower()}{_HOW_TO_READ[1:]}",
        )
    response = getattr(error, "response", None)
    if isinstance(error, errors.HfHubHTTPError) and response is not None and response.status_code in (401, 403):
        return refused(
            "HUB_TOKEN_REFUSED",
            f"The hub refuses the token with which {hub_id} is read, or the token's permissions do not include it.",
            "Set a valid token that may read it with `ftf secrets set`, or ask the operator if the job names none.",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return error
    # HTTPError is that of the hub's own HTTP client, whichever this version uses.
    if isinstance(error, errors.HTTPError | OSError):  # type: ignore[attr-defined]
        return SystemFailure(
            "HUB_UNREACHABLE",
            f"The {kind} hub could not be reached for {hub_id}: {type(error).__name__}.",
            f"Try again later, or {instead}.",
        )
    return error
