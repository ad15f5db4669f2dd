"""Tuned models by their names: `ft:<job_id>`, and `ft:<job_id>@<step>` for one of the job's checkpoints."""

from typing import Final

from pydantic import ValidationError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import FailedPrecondition, NotFound, Violation
from engine.config.job import JobConfig
from engine.config.spec_proto import resolved_config
from finetuneflow.v1.event_pb2 import ConfigResolved
from finetuneflow.v1.stage_result_pb2 import TrainingResult
from gateway.sql.tables import SavedCheckpoint, Work
from gateway.work.kinds import FINE_TUNING_JOB
from gateway.work.lifecycle import TERMINAL

TUNED: Final = "ft:"


def split_name(name: str) -> tuple[str, int | None] | None:
    """Returns the id of the job and the step, or None for it, in the name of a tuned model. None for other names."""
    job_id, at, step = name.removeprefix(TUNED).partition("@")
    if not name.startswith(TUNED) or (at and not (step.isascii() and step.isdigit() and len(step) <= 18)):
        return None
    return job_id, int(step) if at else None


async def find_job(session: AsyncSession, job_id: str, tenant: str, *, lock: bool = False) -> Work | None:
    """Returns the tenant's job, or None. With `lock` it is not deleted before the transaction ends."""
    query = select(Work).where(Work.id == job_id, Work.tenant == tenant, Work.kind == FINE_TUNING_JOB.name)
    job: Work | None = (await session.exec(query.with_for_update(read=True) if lock else query)).one_or_none()
    return job


async def existing_job(
    session: AsyncSession, job_id: str, tenant: str, field: str = "model", *, lock: bool = False
) -> Work:
    """Returns a job that is not being deleted; `field` is the path of its name in the request. Raises NotFound."""
    job = await find_job(session, job_id, tenant, lock=lock)
    if job is None:
        message = f"There is no model {TUNED + job_id!r}: there is no such fine-tuning job."
        raise NotFound("MODEL_NOT_FOUND", message, [Violation(field, message)])
    if job.deleting:
        message = f"The model {TUNED + job.id!r} is being deleted with its job."
        raise NotFound("MODEL_NOT_FOUND", message, [Violation(field, message)])
    return job


async def trained_job(
    session: AsyncSession, job_id: str, tenant: str, field: str = "model", *, lock: bool = False
) -> Work:
    """Returns a job whose training has finished; `field` is the path of its name in the request.

    Raises NotFound, FailedPrecondition.
    """
    job = await existing_job(session, job_id, tenant, field, lock=lock)
    if job.training is None:
        state = job.state.removeprefix("JOB_STATE_")
        message = f"Job {job.id} is {state} and has not finished its training, so it has no model yet."
        if job.state in TERMINAL:
            message = (
                f"Job {job.id} is {state} and has not finished its training, so it has no model; create it again. "
                f"A checkpoint that it has stored, if there is one, only answers: `ftf generate {TUNED}{job.id}@STEP`."
            )
        raise FailedPrecondition("NOT_TRAINED", message, [Violation(field, message)])
    return job


async def find_checkpoint(session: AsyncSession, job: Work, step: int | None, field: str) -> SavedCheckpoint:
    """Returns the job's checkpoint of that step, or its best one. NotFound."""
    query = select(SavedCheckpoint).where(SavedCheckpoint.work_id == job.id).order_by(col(SavedCheckpoint.sequence))
    rows = (await session.exec(query)).all()
    if step is None:
        # What the export packs, and evaluations are about.
        best = TrainingResult.FromString(job.training or b"").best_checkpoint_path
        found = [row for row in rows if row.path == best]
    else:
        found = [row for row in rows if row.step == step]
    kept = [row for row in found if not row.pruned]
    if kept:
        return kept[-1]
    left = ", ".join(str(step) for step in sorted({row.step for row in rows if not row.pruned}))
    if found:
        problem = f"The checkpoint of step {found[-1].step} of job {job.id} was deleted when newer ones were saved"
    else:
        problem = f"Job {job.id} has no checkpoint of {'its best step' if step is None else f'step {step}'}"
    advice = f"Name one of its steps: {left}." if left else "Name another job."
    raise NotFound("CHECKPOINT_NOT_FOUND", f"{problem}. {advice}", [Violation(field, f"{problem}. {advice}")])


def resolved_settings(job: Work) -> JobConfig:
    """Returns the job's settings. FailedPrecondition if another version resolved them."""
    try:
        return resolved_config(ConfigResolved.FromString(job.config or b"").resolved_spec)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, detail["loc"])) for detail in error.errors())
        raise FailedPrecondition(
            "VERSION_MISMATCH",
            f"Job {job.id} was resolved by another version of the server, and this one does not accept its {fields}; "
            "create the job again, or ask the operator for that version.",
            metadata={"job_id": job.id},
        ) from error
