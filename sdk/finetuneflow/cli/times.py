"""Times on the command line: `30d`, or a date."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import typer

_DURATION = re.compile(r"(\d+)([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def time_from_now(text: str) -> datetime:
    """Returns the end of a duration that begins now, or the date. Raises typer.BadParameter."""
    return _time(text, +1)


def time_before_now(text: str) -> datetime:
    """Returns the beginning of a duration that ends now, or the date. Raises typer.BadParameter."""
    return _time(text, -1)


def shown_time(time: datetime | None, otherwise: str = "") -> str:
    """Formats a time in this machine's time zone."""
    return f"{time.astimezone():%Y-%m-%d %H:%M}" if time else otherwise


def _time(text: str, direction: int) -> datetime:
    try:
        if duration := _DURATION.fullmatch(text.strip()):
            return datetime.now(UTC) + direction * timedelta(**{_UNITS[duration[2]]: int(duration[1])})
        # A time without a zone is one of this machine's clock.
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is neither a duration such as 90m, 12h or 30d nor a date such as 2027-01-31 or 2027-01-31T12:00."
        ) from None
