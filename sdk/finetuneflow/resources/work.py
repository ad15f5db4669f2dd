"""The fields that evaluations and exports share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetuneflow.resources.convert import Resource
from finetuneflow.resources.job import AttemptSummary, Fault, JobState, Progress


@dataclass(frozen=True, kw_only=True)
class ModelWork(Resource):
    """An evaluation or an export of a model, in the state in which it was read."""

    id: str
    """`ev_` or `ex_` and 26 characters, sortable by creation."""
    job_id: str
    """The fine-tuning job whose model it is about. Empty for a base model alone."""
    model: str
    """The model it is about: `ft:<job_id>`, `ft:<job_id>@<step>` or a base model."""
    spec: dict[str, Any]
    """Its settings, every field set: the request's values over the job's own."""
    state: JobState
    """Its state. A stage of a job leaves it SUCCEEDED."""
    reason: str
    """The cause of the state: one of `finetuneflow.Reason`. Empty if the state needs no cause."""
    message: str
    """The cause in one sentence."""
    fault: Fault | None
    """If FAILED: who can fix it."""
    advice: str
    """If FAILED: how to fix it."""
    attempt: int
    """The current attempt, from 1; 0 if a job's own stage left it."""
    failed_attempts: int
    """Failures counted against max_attempts so far."""
    max_attempts: int
    """Failures after which it ends as FAILED: the job's own max_attempts."""
    progress: Progress | None
    """The phase it is in; None before the first one."""
    last_sequence: int
    """Sequence of the latest accepted event; 0 if there is none."""
    create_time: datetime | None
    """Time of creation; if a job's own stage left it, of its acceptance."""
    update_time: datetime | None
    """Time of the latest change."""
    end_time: datetime | None
    """Time at which it ended. None before."""
    attempts: tuple[AttemptSummary, ...]
    """The latest 100 attempts, oldest first. Set by `get`; other methods leave it empty."""
    waiting: str
    """Why it waits, in one sentence, and how many attempts are before it. Empty if it does not wait. Set by `get`;
    other methods leave it empty."""

    @property
    def ended(self) -> bool:
        """True if the state is terminal."""
        return self.state.terminal

    @property
    def belongs_to_job(self) -> bool:
        """True if a stage of the job left it: it has no events and no attempts of its own."""
        return self.ended and not self.attempt and not self.last_sequence
