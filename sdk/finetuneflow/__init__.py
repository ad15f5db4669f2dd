"""Client of FineTuneFlow: fine-tuning of language models as a service.

    from finetuneflow import Client

    client = Client()
    job = client.jobs.create(base_model="smollm2-135m", training_data="train.jsonl")
    for event in client.jobs.watch(job.id):
        if event.kind == "log":
            print(event.log.step, event.log.loss)

What it raises stands in `finetuneflow.errors`, what it returns in `finetuneflow.resources`.
"""

from finetuneflow.client import Client
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
)

__all__ = [
    "AlreadyExists",
    "ApiError",
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
    "ResourceExhausted",
    "ServerError",
    "ServerUnreachable",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Violation",
]
