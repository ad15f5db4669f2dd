"""Exit codes, and what a failure prints."""

from __future__ import annotations

import sys
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from finetuneflow.errors import (
    ApiError,
    DeadlineExceeded,
    FineTuneFlowError,
    IntegrityError,
    JobCancelled,
    JobFailed,
    ServerError,
    Unavailable,
)

DONE = 0
JOB_FAILED = 1
USAGE = 2
UNREACHABLE = 3
# What a shell reports for Ctrl-C: neither done nor failed, so `ftf train ... && deploy` stops here.
DETACHED = 130


def exit_code(error: FineTuneFlowError) -> int:
    """0 done, 1 the job (or the server) failed, 2 usage and bad input, 3 cannot reach the server."""
    if isinstance(error, (Unavailable, DeadlineExceeded)):
        return UNREACHABLE
    if isinstance(error, (JobFailed, JobCancelled, ServerError, IntegrityError)):
        return JOB_FAILED
    return USAGE


def report(error: FineTuneFlowError, console: Console) -> None:
    """What was wrong, each field at fault, and the command that helps."""
    reason = f" [{error.reason}]" if isinstance(error, ApiError) and error.reason else ""
    console.print(f"{error.message}{reason}", style="red")
    if isinstance(error, ApiError):
        for field, description in error.unsaid:
            console.print(f"  {field}: {description}")
    if isinstance(error, JobFailed):
        console.print(f"Look into it: ftf jobs explain {error.job.id}")
    elif exit_code(error) == UNREACHABLE:
        console.print("Look into it: ftf doctor")


class ReportingGroup(TyperGroup):
    """Turns our exceptions into a message on stderr and an exit code, for every command below it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FineTuneFlowError as error:
            report(error, error_console())
            raise typer.Exit(exit_code(error)) from error
        except OSError as error:
            # A file that can't be read or a folder that can't be written; BrokenPipeError is click's own affair.
            if error.filename is None:
                raise
            error_console().print(f"{error.strerror}: {error.filename}", style="red")
            raise typer.Exit(USAGE) from error


def error_console() -> Console:
    return Console(file=sys.stderr, markup=False, highlight=False, soft_wrap=True)
