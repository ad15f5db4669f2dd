"""What can go wrong, one exception for each status that a caller can act on.

| exception | gRPC status | what a caller does |
|---|---|---|
| InvalidArgument | INVALID_ARGUMENT | mend the fields in `violations`; a spec refused by this client raises it too |
| NotFound | NOT_FOUND | check the id |
| AlreadyExists | ALREADY_EXISTS | use another request_id, or the resource that is there |
| FailedPrecondition | FAILED_PRECONDITION | the state forbids it: wait, or do the other thing first |
| OutOfRange | OUT_OF_RANGE | the cursor or offset lies beyond the end |
| ResourceExhausted | RESOURCE_EXHAUSTED | send less, or ask the operator for more |
| Unauthenticated | UNAUTHENTICATED | set FTF_TOKEN |
| PermissionDenied | PERMISSION_DENIED | ask for access |
| Unimplemented | UNIMPLEMENTED | this server does not offer it (yet) |
| DeadlineExceeded | DEADLINE_EXCEEDED | the call may or may not have taken effect; repeat it |
| Unavailable | UNAVAILABLE | a part of the service is down; repeat it later |
| ServerUnreachable | UNAVAILABLE, no answer at all | start the server, or mend the address |
| ServerError | any other | a fault of the server's; its log has the rest |

Beside them: `JobFailed` and `JobCancelled` (raised by `jobs.wait`) and `IntegrityError` (downloaded bytes are not the
ones the server named). All are `FineTuneFlowError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from finetuneflow.resources.job import Job

_DETAILS_KEY = "grpc-status-details-bin"


class Violation(NamedTuple):
    """One field at fault: its path (`spec.hyperparameters.learning_rate`) and how to mend it."""

    field: str
    description: str


class FineTuneFlowError(Exception):
    """Base of everything that this package raises on purpose. `advice` says what helps, where that is known."""

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return "\n".join(filter(None, (self.message, self.advice)))


class ApiError(FineTuneFlowError):
    """A call was refused or failed.

    `reason` is machine-readable (UPPER_SNAKE_CASE, empty when the server gave none), `violations` lists the fields
    at fault, `metadata` holds further facts that the server named, `code` is the gRPC status.
    """

    code = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        violations: Sequence[Violation] = (),
        metadata: Mapping[str, str] | None = None,
        code: grpc.StatusCode | None = None,
        advice: str = "",
    ) -> None:
        super().__init__(message, advice=advice)
        self.reason = reason
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        fields = (f"  {field}: {description}" for field, description in self.unsaid)
        return "\n".join(filter(None, (self.message, *fields, self.advice)))

    @property
    def unsaid(self) -> tuple[Violation, ...]:
        """The violations whose description is not part of the message already."""
        return tuple(violation for violation in self.violations if violation.description not in self.message)


class InvalidArgument(ApiError):
    """A value is out of its range, of the wrong type, or its name is not known."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(ApiError):
    """Nothing has this id."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(ApiError):
    """The request_id was used before, for something else."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(ApiError):
    """The state of the resource forbids the call."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class OutOfRange(ApiError):
    """A cursor or an offset lies beyond the end."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ResourceExhausted(ApiError):
    """A limit on size, number or rate was reached."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unauthenticated(ApiError):
    """The server wants a token, or does not know this one."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(ApiError):
    """The token does not allow this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unimplemented(ApiError):
    """This server does not offer the method."""

    code = grpc.StatusCode.UNIMPLEMENTED


class DeadlineExceeded(ApiError):
    """No answer in time. Whether the call took effect is not known; repeating it is safe."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unavailable(ApiError):
    """The server answered that a part it needs is down."""

    code = grpc.StatusCode.UNAVAILABLE


class ServerUnreachable(Unavailable):
    """Nothing answers at `address`."""

    def __init__(self, address: str, detail: str) -> None:
        super().__init__(
            f"No FineTuneFlow server answers at {address} ({detail}).",
            advice="Start one on this machine with `ftf up`, or set FTF_ADDRESS to the host:port of one that runs.",
        )
        self.address = address


class ServerError(ApiError):
    """The server failed in a way it did not foresee."""

    code = grpc.StatusCode.INTERNAL


class IntegrityError(FineTuneFlowError):
    """Downloaded bytes do not have the SHA-256 or the size that the server named."""


class JobFailed(FineTuneFlowError):
    """A job that was waited for has failed.

    `fault` says who can mend it (`USER_ERROR`, `SYSTEM_ERROR`), `reason` is machine-readable, `advice` says what to
    change. `job` is the job as it ended.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(f"Job {job.id} failed: {job.reason}: {job.message}", advice=job.advice)
        self.job = job
        self.fault = str(job.fault or "")
        self.reason = job.reason


class JobCancelled(FineTuneFlowError):
    """A job that was waited for has been cancelled."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"Job {job.id} was cancelled.")
        self.job = job


ERRORS: Mapping[grpc.StatusCode, type[ApiError]] = {
    error.code: error
    for error in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        OutOfRange,
        ResourceExhausted,
        Unauthenticated,
        PermissionDenied,
        Unimplemented,
        DeadlineExceeded,
        Unavailable,
    )
}

# How a dying connection shows beside UNAVAILABLE. The server's own failures carry an ErrorInfo; these don't.
_BROKEN_STREAM_CODES = {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
_BROKEN_STREAM_SIGNS = ("RST_STREAM", "Stream removed", "GOAWAY", "Socket closed", "Connection reset", "CANCELLED")


def from_rpc_error(error: grpc.RpcError, address: str) -> ApiError:
    """Turns what grpc (sync or aio) raised into the typed exception of the table above."""
    code: grpc.StatusCode = error.code()
    message: str = error.details() or code.name
    reason, violations, metadata = _read_details(_status_of(error))
    if not reason:
        if code is grpc.StatusCode.UNAVAILABLE:
            return ServerUnreachable(address, message.rpartition(": ")[2])
        if code in _BROKEN_STREAM_CODES and (
            code is grpc.StatusCode.CANCELLED or any(sign in message for sign in _BROKEN_STREAM_SIGNS)
        ):
            return ServerUnreachable(address, f"the connection broke: {message}")
    kind = ERRORS.get(code, ServerError)
    return kind(message, reason=reason, violations=violations, metadata=metadata, code=code)


def from_status(status: status_pb2.Status) -> ApiError:
    """Turns an error status into the typed exception that the same status of a server becomes."""
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    reason, violations, metadata = _read_details(status)
    kind = ERRORS.get(code, ServerError)
    return kind(status.message, reason=reason, violations=violations, metadata=metadata, code=code)


def _status_of(error: grpc.RpcError) -> status_pb2.Status:
    """Returns the status with its details; an empty one if the server sent none."""
    status = status_pb2.Status()
    trailing: Any = error.trailing_metadata() or ()
    for key, value in trailing:
        if key == _DETAILS_KEY:
            status.MergeFromString(value)
    return status


def _read_details(status: status_pb2.Status) -> tuple[str, list[Violation], dict[str, str]]:
    reason = ""
    violations: list[Violation] = []
    metadata: dict[str, str] = {}
    for detail in status.details:
        info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad_request):
            violations += [Violation(v.field, v.description) for v in bad_request.field_violations]
    return reason, violations, metadata
