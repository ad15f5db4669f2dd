"""Following a job from a command: what Ctrl-C and the job's end mean for the exit code."""

from __future__ import annotations

import typer

from finetuneflow.cli.advice import ftf
from finetuneflow.cli.console import error_console
from finetuneflow.cli.exits import DETACHED, JOB_FAILED
from finetuneflow.cli.live import follow
from finetuneflow.cli.session import Session


def follow_or_detach(session: Session, job_id: str, *, json: bool, after_sequence: int = 0) -> None:
    """Returns when the job has SUCCEEDED; otherwise leaves with an exit code."""
    try:
        job = follow(session.client, job_id, console=session.console, json=json, after_sequence=after_sequence)
    except KeyboardInterrupt:
        console = error_console()
        console.print(f"\nDetached; the job goes on. Return to it: {ftf(f'jobs watch {job_id}')}")
        console.print(f"Stop it: {ftf(f'jobs cancel {job_id}')}")
        raise typer.Exit(DETACHED) from None
    if job.state != "SUCCEEDED":
        raise typer.Exit(JOB_FAILED)
