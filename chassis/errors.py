"""Exceptions that a handler raises, one for each gRPC status."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from chassis.error_protocols import CallerFault, FieldProblem, LimitFault, SystemFault, Violation

__all__ = [
    "DETAILS_KEY",
    "DOMAIN",
    "Aborted",
    "AlreadyExists",
    "CallerFault",
    "FailedPrecondition",
    "FieldProblem",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "ServiceError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Violation",
    "from_caller_fault",
    "from_status",
    "from_system_fault",
    "unreadable_request",
]

DOMAIN = "finetuneflow"
DETAILS_KEY = "grpc-status-details-bin"
_MAX_MESSAGE = 2000


class ServiceError(Exception):
    """An error that is returned to the caller. Raise a subclass; each is one gRPC status.

    `reason` is machine-readable (UPPER_SNAKE_CASE), `message` a sentence for the reader. `violations` become a
    BadRequest, `metadata` goes into the ErrorInfo.
    """

    code: grpc.StatusCode = grpc.StatusCode.INTERNAL

    def __init__(
        self,
        reason: str,
        message: str,
        violations: Sequence[FieldProblem] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*[A-Z0-9]", reason):
            raise ValueError(f"a reason is UPPER_SNAKE_CASE: {reason!r}")
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})

    def status(self) -> status_pb2.Status:
        """Builds the google.rpc.Status: always with ErrorInfo, with BadRequest if there are violations."""
        details: list[any_pb2.Any] = []
        info = any_pb2.Any()
        info.Pack(error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata))
        details.append(info)
        if self.violations:
            bad = any_pb2.Any()
            fields = [
                error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                for v in self.violations
            ]
            bad.Pack(error_details_pb2.BadRequest(field_violations=fields))
            details.append(bad)
        return status_pb2.Status(
            code=code_pb2.Code.Value(self.code.name), message=_shortened(self.message), details=details
        )


def _shortened(message: str) -> str:
    """Shortens a message: it travels in a header, and with one of a megabyte the caller would get no status."""
    return message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]}…"


class InvalidArgument(ServiceError):
    """The request is invalid, whatever the state of the system."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(ServiceError):
    """The named resource does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(ServiceError):
    """The resource to create exists, with other content."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(ServiceError):
    """The request is valid but not in the present state; do not repeat it before the state changes."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class OutOfRange(ServiceError):
    """The request refers to a position beyond the end."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ResourceExhausted(ServiceError):
    """A limit was reached."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Aborted(ServiceError):
    """Another request is in progress; try again."""

    code = grpc.StatusCode.ABORTED


class Unauthenticated(ServiceError):
    """The caller is unknown: no credentials, or credentials that are not valid."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(ServiceError):
    """The caller is known and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unimplemented(ServiceError):
    """The method, or the feature that a field asks for, is not available yet."""

    code = grpc.StatusCode.UNIMPLEMENTED


class Unavailable(ServiceError):
    """A required part is unavailable; try again."""

    code = grpc.StatusCode.UNAVAILABLE


class Internal(ServiceError):
    """An unexpected error. Raised by the server itself only."""

    code = grpc.StatusCode.INTERNAL


def unreadable_request() -> InvalidArgument:
    """Returns the error for bytes that are not the method's message."""
    message = "The request is not the message that the method takes; generate the client from the present protos."
    return InvalidArgument("INVALID_REQUEST", message)


def from_caller_fault(fault: CallerFault) -> InvalidArgument | ResourceExhausted:
    """Converts a domain exception that the caller can correct."""
    # A short message may contain its advice already.
    message = fault.message if fault.advice in fault.message else f"{fault.message} {fault.advice}"
    kind = ResourceExhausted if isinstance(fault, LimitFault) else InvalidArgument
    return kind(fault.reason, message, fault.violations)


def from_system_fault(fault: SystemFault) -> Unavailable:
    """Returns the status for an exception that a retry may cure."""
    return Unavailable(fault.reason, f"{fault.message} {fault.advice}".rstrip())


def from_status(status: status_pb2.Status) -> ServiceError:
    """Returns the exception whose `status()` is `status`."""
    reason, metadata, violations = "", {}, []
    for detail in status.details:
        info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad_request):
            violations += [Violation(each.field, each.description) for each in bad_request.field_violations]
    kinds = {kind.code.value[0]: kind for kind in ServiceError.__subclasses__()}
    return kinds[status.code](reason, status.message, violations, metadata)
