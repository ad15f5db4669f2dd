"""The start of a training: looks up the adapter of another job, which a spec names by `ft:<job_id>[@<step>]`."""

from dataclasses import dataclass

from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import InvalidArgument, Unimplemented, Violation
from engine.config.spec_proto import spec_to_dict, values_to_spec
from engine.config.start import StartSource, saved_rank, split_key, trained_datasets
from engine.model_names import model_reference
from finetuneflow.v1.fine_tuning_job_pb2 import AdapterStart, TrainedData
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec, StartMode
from finetuneflow.v1.stage_result_pb2 import BaseModelIdentity, PreflightResult
from finetuneflow.v1.work_pb2 import TrainingStart
from gateway import views
from gateway.specs import UPLOADED, check_datasets, check_text
from gateway.sql.tables import Work
from gateway.tuned_models import TUNED, find_checkpoint, resolved_settings, split_name, trained_job


@dataclass(frozen=True)
class FoundStart:
    """The adapter that a spec names, and the spec with what it takes over from the adapter's job."""

    job_id: str | None
    """The adapter's job; None for an uploaded adapter."""
    field: str
    """Path of the field that names the adapter."""
    spec: FineTuningJobSpec
    """The caller's spec with the base model of that job, the checkpoint in start_from, and the adapter's settings. The
    spec as it is for an uploaded adapter, which preflight reads."""
    source: StartSource | None
    message: TrainingStart


async def find_start(session: AsyncSession, tenant: str, spec: FineTuningJobSpec) -> FoundStart | None:
    """Returns what a job with this spec starts from; None for the base model.

    Raises InvalidArgument, NotFound, FailedPrecondition, Unimplemented, and JobError("INVALID_CONFIG") if the adapter
    cannot be used as the spec says.
    """
    # Before any of its texts is searched for.
    check_text(spec)
    name, field = _named(spec)
    if not name:
        return None
    if name.startswith(UPLOADED):
        return await _uploaded(session, tenant, spec)
    job_id, step = _parsed(name, field)
    job = await trained_job(session, job_id, tenant, field)
    config = resolved_settings(job)
    if config.method == "full":
        problem = f"Job {job.id} trained all weights (method full); training such a model further is not available yet."
        advice = "Name a job of method lora or qlora, or train on the base model."
        raise Unimplemented("NOT_IMPLEMENTED", f"{problem} {advice}", [Violation(field, problem)])
    checkpoint = await find_checkpoint(session, job, step, field)
    identity = PreflightResult.FromString(job.preflight or b"").base_model
    earlier = TrainingStart.FromString(job.start or b"")
    pinned = f"{TUNED}{job.id}@{checkpoint.step}"
    source = StartSource(pinned, config, saved_rank(config, earlier.rank))
    found = FineTuningJobSpec()
    found.CopyFrom(spec)
    found.start_from, found.base_model = pinned, _base_model(spec, job, identity)
    found.MergeFrom(values_to_spec(source.open_settings(spec_to_dict(found))))
    mode = spec.start_mode or StartMode.START_MODE_CONTINUE
    own = AdapterStart(start_from=pinned, start_mode=mode, manifest_sha256=checkpoint.manifest_sha256)
    data = TrainedData(datasets=trained_datasets(config), split_key=split_key(config))
    message = TrainingStart(
        checkpoint=views.checkpoint(checkpoint),
        rank=source.rank,
        base_weights_sha256=identity.weights_sha256,
        base_tokenizer_path=identity.tokenizer_path,
        lineage=[own, *earlier.lineage],
        trained_data=[data, *earlier.trained_data],
    )
    return FoundStart(job.id, field, found, source, message)


async def _uploaded(session: AsyncSession, tenant: str, spec: FineTuningJobSpec) -> FoundStart:
    (row,) = [row for row in await check_datasets(session, tenant, spec) if row.id == spec.start_from]
    mode = spec.start_mode or StartMode.START_MODE_CONTINUE
    own = AdapterStart(start_from=row.id, start_mode=mode, manifest_sha256=row.sha256)
    message = TrainingStart(dataset=views.dataset(row), lineage=[own])
    return FoundStart(None, "spec.start_from", spec, None, message)


def _named(spec: FineTuningJobSpec) -> tuple[str, str]:
    """Returns the name of the adapter and the field with it."""
    if not spec.base_model.startswith(TUNED):
        return spec.start_from, "spec.start_from"
    if spec.start_from and spec.start_from != spec.base_model:
        names = f"base_model names {spec.base_model[:80]!r} and start_from {spec.start_from[:80]!r}"
        raise _invalid("spec.start_from", f"{names}; a training starts from one model. Remove one of the two.")
    return spec.base_model, "spec.base_model"


def _parsed(name: str, field: str) -> tuple[str, int | None]:
    """Returns the id of the job, and the step if the name has one."""
    found = split_name(name)
    if found is None:
        forms = "`ft:<job_id>`, `ft:<job_id>@<step>` nor the id of an uploaded adapter"
        advice = "An adapter that was made elsewhere is uploaded with `ftf datasets upload-adapter FOLDER`."
        raise _invalid(field, f"{name[:80]!r} is neither {forms}. {advice}")
    return found


def _base_model(spec: FineTuningJobSpec, job: Work, identity: BaseModelIdentity) -> str:
    """Returns the base model of the job, at the revision that it used. InvalidArgument if the spec names another."""
    used = model_reference(identity.id, identity.revision)
    same = {used, identity.id, FineTuningJobSpec.FromString(job.merged_spec).base_model}
    if spec.base_model and not spec.base_model.startswith(TUNED) and spec.base_model not in same:
        raise _invalid(
            "spec.base_model",
            f"The adapter of job {job.id} belongs to the base model {used}, not to {spec.base_model[:80]!r}. Remove "
            "base_model, or remove start_from to train on that model.",
        )
    return used


def _invalid(field: str, problem: str) -> InvalidArgument:
    return InvalidArgument("INVALID_START", problem, [Violation(field, problem)])
