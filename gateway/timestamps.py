"""Timestamps of requests."""

from google.protobuf.timestamp_pb2 import Timestamp

from chassis.errors import InvalidArgument, Violation

_YEAR_10000 = 253_402_300_800


def microseconds(stamp: Timestamp, field: str) -> int:
    """Returns microseconds since 1970. Raises InvalidArgument for a time outside the years 1 to 9999."""
    if not -62_135_596_800 <= stamp.seconds < _YEAR_10000 or not 0 <= stamp.nanos < 1_000_000_000:
        problem = "is not a time in the years 1 to 9999"
        raise InvalidArgument("INVALID_REQUEST", f"{field} {problem}.", [Violation(field, problem)])
    return stamp.seconds * 1_000_000 + stamp.nanos // 1000
