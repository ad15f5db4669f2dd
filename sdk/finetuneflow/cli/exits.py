"""Exit codes and error messages of `ftf`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from finetuneflow.cli.advice import as_typed, ftf, new_key_advice
from finetuneflow.cli.console import error_console, visible
from finetuneflow.errors import (
    ApiError,
    DeadlineExceeded,
    FineTuneFlowError,
    IntegrityError,
    JobFailed,
    ServerError,
    Unauthenticated,
    Unavailable,
    Violation,
    WorkCancelled,
    WorkFailed,
)

JOB_FAILED = 1
USAGE = 2
UNREACHABLE = 3
# The shell's own code for Ctrl-C: neither success nor failure, so `ftf train ... && deploy` stops here.
DETACHED = 130

EXIT_CODES = (
    "Exit codes: 0 success; 1 the job or the server failed; 2 invalid usage or input; 3 no server is reachable; "
    "130 Ctrl-C; a job continues without the command."
)

# click's ClickException, which recent releases of typer bundle under a name of their own.
_ClickException: Any = typer.BadParameter.__mro__[2]
_JSON = "finetuneflow.json"


class CommandFailed(FineTuneFlowError):
    """A command failed without a server; the message says how to fix it."""

    def __init__(
        self, message: str, *, code: int = USAGE, advice: str = "", violations: Sequence[Violation] = ()
    ) -> None:
        super().__init__(message, advice=advice)
        self.exit_code = code
        self.violations = tuple(violations)


def exit_code(error: FineTuneFlowError) -> int:
    """Returns the exit code of a failure: 1 the job or the server failed, 2 invalid input, 3 no server is reachable."""
    if isinstance(error, CommandFailed):
        return error.exit_code
    if isinstance(error, (Unavailable, DeadlineExceeded)):
        return UNREACHABLE
    if isinstance(error, (WorkFailed, WorkCancelled, ServerError, IntegrityError)):
        return JOB_FAILED
    return USAGE


def report(error: FineTuneFlowError, console: Console) -> None:
    """Prints the problem, each invalid field, and how to fix it."""
    reason = f" [{error.reason}]" if isinstance(error, ApiError) and error.reason else ""
    console.print(f"{as_typed(error.message)}{reason}", style="red")
    if isinstance(error, ApiError):
        for line in _fields_at_fault(error):
            console.print(f"  {as_typed(line)}")
    if error.advice:
        console.print(as_typed(error.advice))
    if isinstance(error, JobFailed):
        console.print(f"Details: {ftf(f'jobs explain {error.job.id}')}")
    elif exit_code(error) == UNREACHABLE:
        console.print(f"Diagnose: {ftf('doctor')}")


def _fields_at_fault(error: ApiError) -> Iterator[str]:
    """Yields a line per invalid field. Rows with the same problem share a line."""
    shared: dict[tuple[str, str], list[str]] = {}
    for field, description in error.unsaid:
        source, _, row = field.rpartition(" row ")
        said = description.removeprefix(f"row {row}: ") if source else description
        shared.setdefault((source or field, said), []).append(row if source else "")
    for (place, said), rows in shared.items():
        if not rows[0]:
            yield f"{place}: {said}"
        elif (said.rpartition(" [")[0] or said).rstrip(".") not in error.message:
            yield f"{place} {named_rows(rows)}: {said}"
        elif len(rows) > 1:
            yield f"{place} {named_rows(rows)}: the same"


def named_rows(rows: Sequence[str]) -> str:
    """Formats row numbers: `row 2`, or `rows 2, 3, 4 and 46 more`."""
    if len(rows) == 1:
        return f"row {rows[0]}"
    first, more = rows[:3], len(rows) - 3
    return f"rows {', '.join(first)} and {more:,} more" if more > 0 else f"rows {' and '.join(first)}"


def error_object(error: FineTuneFlowError) -> dict[str, Any]:
    """Returns the error as a JSON object: `code` is the gRPC status, or the name of an error without a server."""
    named = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).upper()
    return {
        "code": error.code.name if isinstance(error, ApiError) else named,
        "reason": str(getattr(error, "reason", "")),
        "message": as_typed(error.message),
        "advice": as_typed(error.advice),
        "violations": [{"field": f, "description": d} for f, d in getattr(error, "violations", ())],
    }


def _argument_at_fault(error: Any) -> list[Violation]:
    """Returns the option or argument that click refused, such as `--model`, if click names it."""
    given, parameter = getattr(error, "param_hint", None), getattr(error, "param", None)
    name = given or getattr(error, "option_name", None)
    if not name and parameter is not None:
        is_option = getattr(parameter, "param_type_name", "") == "option"
        name = parameter.opts[0] if is_option else parameter.name
    return [Violation(str(name), error.message or error.format_message())] if name else []


class ReportingGroup(TyperGroup):
    """Converts exceptions of every command below it to an exit code and a message on stderr; with `--json` to one JSON
    object on stderr."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_JSON] = "--json" in args
        return super().parse_args(ctx, self._json_after_command(ctx, args))

    def _json_after_command(self, ctx: Any, args: list[str]) -> list[str]:
        """Moves a `--json` that stands before the command behind it, where commands have that option."""
        group: Any = self
        before, rest = [], list(args)
        while rest and isinstance(group, TyperGroup):
            word = rest.pop(0)
            if word == "--":
                rest.insert(0, word)
                break
            before.append(word)
            if word == "--address" and rest:
                before.append(rest.pop(0))
            elif not word.startswith("-"):
                group = group.get_command(ctx, word)
        if "--json" not in before or group is self:
            return args
        return [*(word for word in before if word != "--json"), "--json", *rest]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FineTuneFlowError as error:
            failure: FineTuneFlowError = error
        except OSError as error:
            # A file that can't be read or a folder that can't be written; click handles BrokenPipeError itself.
            if error.filename is None:
                raise
            failure = CommandFailed(f"{error.strerror}: {error.filename}")
        except _ClickException as error:
            if not ctx.meta[_JSON]:
                error.message = visible(error.message)
                raise
            failure = CommandFailed(error.format_message(), violations=_argument_at_fault(error))
        if isinstance(failure, Unauthenticated) and ctx.invoked_subcommand != "login":
            failure.advice = "\n".join(filter(None, (failure.advice, new_key_advice(failure.message))))
        if ctx.meta[_JSON]:
            said = json.dumps({"error": error_object(failure)}, ensure_ascii=False)
            sys.stderr.write(visible(said) + "\n")
        else:
            report(failure, error_console())
        raise typer.Exit(exit_code(failure))
