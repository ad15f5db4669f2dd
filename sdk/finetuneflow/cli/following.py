"""Following a job from a command: exit codes for Ctrl-C and for the job's end."""

from __future__ import annotations

from pathlib import Path

import typer

from finetuneflow.cli.advice import ftf
from finetuneflow.cli.console import error_console
from finetuneflow.cli.exits import DETACHED, JOB_FAILED
from finetuneflow.cli.live import follow
from finetuneflow.cli.session import Session


def follow_or_detach(
    session: Session, job_id: str, *, json: bool, after_sequence: int = 0, training_log: Path | None = None
) -> None:
    """Follows a job and returns when it has SUCCEEDED; otherwise exits with a code."""
    try:
        job = follow(
            session.client,
            job_id,
            console=session.console,
            json=json,
            after_sequence=after_sequence,
            training_log=training_log,
        )
    except KeyboardInterrupt:
        console = error_console()
        console.print(f"\nDetached; the job continues. Follow it: {ftf(f'jobs watch {job_id}')}")
        console.print(f"Cancel it: {ftf(f'jobs cancel {job_id}')}")
        raise typer.Exit(DETACHED) from None
    if job.state != "SUCCEEDED":
        raise typer.Exit(JOB_FAILED)
