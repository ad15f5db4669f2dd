"""Exceptions of the client, one for each status that a caller can act on.

| exception | gRPC status | action |
|---|---|---|
| InvalidArgument | INVALID_ARGUMENT | fix the fields in `violations`; the client also raises it itself |
| NotFound | NOT_FOUND | check the id |
| AlreadyExists | ALREADY_EXISTS | use another request_id, or the existing resource |
| FailedPrecondition | FAILED_PRECONDITION | wait for, or change, the state of the resource first |
| OutOfRange | OUT_OF_RANGE | use a cursor or offset that is not beyond the end |
| ResourceExhausted | RESOURCE_EXHAUSTED | send less, or ask the operator for a higher limit |
| Unauthenticated | UNAUTHENTICATED | `ftf login`, or set FTF_TOKEN to a key that works |
| PermissionDenied | PERMISSION_DENIED | use a key with a higher role; an operator makes one |
| Unimplemented | UNIMPLEMENTED | remove the fields in `violations`; without violations, use another method |
| DeadlineExceeded | DEADLINE_EXCEEDED | repeat the call; it may have taken effect |
| Unavailable | UNAVAILABLE | repeat the call later; a part of the service is down |
| ServerUnreachable | UNAVAILABLE without an answer | start the server, or correct the address |
| ServerError | any other | look into the server's log; the server failed |

Others: `JobFailed` and `JobCancelled` (raised by `jobs.wait`), and `IntegrityError` (a transferred file does not have
the announced bytes). All are subclasses of `FineTuneFlowError`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from finetuneflow.resources.job import Job
    from finetuneflow.resources.work import ModelWork

_DETAILS_KEY = "grpc-status-details-bin"


class Violation(NamedTuple):
    """An invalid field of a request."""

    field: str
    """Path of the field, such as `spec.hyperparameters.learning_rate`."""
    description: str
    """The problem and how to fix it."""


class FineTuneFlowError(Exception):
    """Base class of this package's exceptions.

    Attributes:
        message: The problem.
        advice: How to fix it; empty if unknown.
    """

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return "\n".join(filter(None, (self.message, self.advice)))


class ApiError(FineTuneFlowError):
    """A call was refused or failed.

    Attributes:
        code: The gRPC status.
        reason: The cause: one of `finetuneflow.Reason`, or one of a newer server; empty if the server gave none.
        violations: The invalid fields.
        metadata: Further facts from the server's ErrorInfo.
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
        """The violations whose description is not part of the message."""
        return tuple(violation for violation in self.violations if violation.description not in self.message)


class InvalidArgument(ApiError):
    """A value is out of range or has the wrong type, or a name is unknown."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(ApiError):
    """No resource has this id."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(ApiError):
    """The request_id was used for another request, or the name is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(ApiError):
    """The state of the resource forbids the call."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class OutOfRange(ApiError):
    """A cursor or an offset is beyond the end."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ResourceExhausted(ApiError):
    """A limit on size, number or rate was reached."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unauthenticated(ApiError):
    """The server accepts no call with these credentials: there is no key, or it is unknown, revoked or expired, or its
    tenant is disabled. `reason` says which.

    The client never repeats such a call. A watch raises it within seconds after its key has ended; the job goes on, and
    a client with another key can watch it from the same sequence.
    """

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(ApiError):
    """The key is valid, but its role is too low for the call, or the call is one that only operators may make.

    `metadata["role"]` names the least role if the role is the reason (`ROLE_TOO_LOW`). The client never repeats such a
    call. What belongs to another tenant raises NotFound instead.
    """

    code = grpc.StatusCode.PERMISSION_DENIED


class Unimplemented(ApiError):
    """The server does not have the method, or a field in `violations` asks for a feature that is not available yet."""

    code = grpc.StatusCode.UNIMPLEMENTED


class DeadlineExceeded(ApiError):
    """The server did not answer in time. The call may have taken effect; repeating it is safe."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unavailable(ApiError):
    """The server answered, but a part that it needs is down."""

    code = grpc.StatusCode.UNAVAILABLE


class ServerUnreachable(Unavailable):
    """No server answers at `address`."""

    def __init__(self, address: str, detail: str, *, advice: str = "") -> None:
        super().__init__(
            f"No FineTuneFlow server answers at {address} ({detail}).",
            advice=advice
            or "Start a server on this machine with `ftf up`, or set FTF_ADDRESS to host:port of a running one.",
        )
        self.address = address


class ServerError(ApiError):
    """The server failed unexpectedly; its log has the details."""

    code = grpc.StatusCode.INTERNAL


class IntegrityError(FineTuneFlowError):
    """A transferred file does not have the announced size or SHA-256, or changed during the transfer."""


class WorkFailed(FineTuneFlowError):
    """The job, evaluation or export has failed.

    Attributes:
        work: It, in its final state.
        fault: Who can fix the failure: `USER_ERROR` or `SYSTEM_ERROR`.
        reason: The cause: one of `finetuneflow.Reason`.
        advice: How to fix the failure.
    """

    def __init__(self, work: Job | ModelWork) -> None:
        super().__init__(f"{noun_of(work)} {work.id} failed: {work.reason}: {work.message}", advice=work.advice)
        self.work = work
        self.fault = str(work.fault or "")
        self.reason = work.reason


class JobFailed(WorkFailed):
    """The job has failed.

    Attributes:
        job: The job in its final state.
        fault: Who can fix the failure: `USER_ERROR` or `SYSTEM_ERROR`.
        reason: The cause: one of `finetuneflow.Reason`.
        advice: How to fix the failure.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.job = job


class WorkCancelled(FineTuneFlowError):
    """The job, evaluation or export was cancelled.

    Attributes:
        work: It, in its final state.
    """

    def __init__(self, work: Job | ModelWork) -> None:
        super().__init__(f"{noun_of(work)} {work.id} was cancelled.")
        self.work = work


class JobCancelled(WorkCancelled):
    """The job was cancelled.

    Attributes:
        job: The job in its final state.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.job = job


def noun_of(work: Job | ModelWork) -> str:
    """Returns `Job`, `Evaluation` or `Export`."""
    return type(work).__name__


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

# Codes of a broken connection other than UNAVAILABLE. The server's own failures carry an ErrorInfo; these don't.
_BROKEN_STREAM_CODES = {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
_BROKEN_STREAM_SIGNS = ("RST_STREAM", "Stream removed", "GOAWAY", "Socket closed", "Connection reset", "CANCELLED")
# Only gRPC's text tells why no connection was made.
_NOT_CONNECTED = "failed to connect to all addresses"
_CLOSED_IN_HANDSHAKE = {"Socket closed", "Connection reset by peer"}
_HANDSHAKE = re.compile(r"Tls handshake failed .*OPENSSL_internal:([^:]+(?:: [a-z][^:]*)?)")


def from_rpc_error(error: grpc.RpcError, address: str) -> ApiError:
    """Converts an error of grpc (sync or aio) to the exception in the table above."""
    code: grpc.StatusCode = error.code()
    message: str = error.details() or code.name
    reason, violations, metadata = _read_details(_status_of(error))
    if not reason:
        if code is grpc.StatusCode.UNAVAILABLE:
            return _unreachable(address, message)
        if code in _BROKEN_STREAM_CODES and (
            code is grpc.StatusCode.CANCELLED or any(sign in message for sign in _BROKEN_STREAM_SIGNS)
        ):
            return ServerUnreachable(address, f"the connection broke: {message}")
    kind = ERRORS.get(code, ServerError)
    return kind(message, reason=reason, violations=violations, metadata=metadata, code=code)


def _unreachable(address: str, message: str) -> ServerUnreachable:
    detail = message.rpartition(": ")[2]
    if (found := _HANDSHAKE.search(message)) is not None:
        return ServerUnreachable(
            address,
            f"the TLS handshake failed: {found[1]}",
            advice="If the server uses TLS, give the file of its certificate authority, in FTF_CA or with `ftf login "
            f"{address} --ca FILE`; otherwise log out with `ftf logout {address}` and unset FTF_CA.",
        )
    if message.startswith(_NOT_CONNECTED) and detail in _CLOSED_IN_HANDSHAKE:
        return ServerUnreachable(
            address,
            detail,
            advice="The server closes connections without TLS, so it may need TLS: set FTF_CA to the file of its "
            f"certificate authority, or run `ftf login {address} --ca FILE`.",
        )
    return ServerUnreachable(address, detail)


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
