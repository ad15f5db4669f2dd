"""Translation of the hub client's exceptions to errors of the engine."""

import errno
from typing import Literal

from engine.errors import JobError, SystemFailure, Violation


def hub_error(error: Exception, kind: Literal["model", "dataset"], hub_id: str, field: str, instead: str) -> Exception:
    """Translates an exception of the hub client.

    Returns JobError MODEL_GATED or MODEL_NOT_FOUND (DATASET_… for a dataset) with a violation at `field`, or
    SystemFailure HUB_UNREACHABLE, whose advice ends with the alternative `instead`. Any other exception is returned
    unchanged.
    """
    from huggingface_hub import errors

    def refused(reason: str, message: str, advice: str) -> JobError:
        return JobError(reason, message, advice, [Violation(field, message)])

    if isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{hub_id}"
        return refused(
            "MODEL_GATED" if kind == "model" else "DATASET_GATED",
            f"{hub_id} is gated: its owner must grant access first.",
            f"Accept its terms at {page} and configure a token of that account on the node.",
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError | errors.HFValidationError):
        what = (
            "has no such revision" if isinstance(error, errors.RevisionNotFoundError) else "does not exist on the hub"
        )
        return refused(
            "MODEL_NOT_FOUND" if kind == "model" else "DATASET_NOT_FOUND",
            f"{hub_id} {what}, or is private.",
            f"Check the id; a private {kind} needs a token of an account that can read it.",
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
