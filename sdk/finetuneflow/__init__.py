"""Client of FineTuneFlow: fine-tuning of language models as a service.

    from finetuneflow import Client

    client = Client()
    job = client.jobs.create(base_model="smollm2-135m", training_data="train.jsonl")
    for event in client.jobs.watch(job.id):
        if event.kind == "log":
            print(event.log.step, event.log.loss)

`AsyncClient` has the same methods, awaited. `finetuneflow.errors` lists the exceptions, `finetuneflow.resources` the
returned objects.
"""

import os
import sys

if sys.argv[:1] == ["-m"] and "finetuneflow.cli" in sys.orig_argv and not sys.flags.safe_path:
    # `python -m finetuneflow.cli` puts the working folder first: a psutil.py there would run in this process.
    _working_folder = sys.path.pop(0)
    if __path__ == [os.path.join(_working_folder, __name__)] and _working_folder not in sys.path:  # noqa: PTH118
        # It is the source checkout, which is not installed.
        sys.path.append(_working_folder)

from finetuneflow.client import AsyncClient, Client
from finetuneflow.errors import (
    AlreadyExists,
    ApiError,
    DeadlineExceeded,
    FailedPrecondition,
    FineTuneFlowError,
    IntegrityError,
    InvalidArgument,
    JobCancelled,
    JobFailed,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    ServerError,
    ServerUnreachable,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Violation,
    WorkCancelled,
    WorkFailed,
)
from finetuneflow.reasons import Reason

__version__ = "0.1.0"

__all__ = [
    "AlreadyExists",
    "ApiError",
    "AsyncClient",
    "Client",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FineTuneFlowError",
    "IntegrityError",
    "InvalidArgument",
    "JobCancelled",
    "JobFailed",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "Reason",
    "ResourceExhausted",
    "ServerError",
    "ServerUnreachable",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Violation",
    "WorkCancelled",
    "WorkFailed",
    "__version__",
]
