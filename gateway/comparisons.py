"""The models that an evaluation compares, or the one that it measures: looks them up by their names."""

from collections.abc import Sequence

from google.protobuf.json_format import MessageToDict
from pydantic import ValidationError
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import InvalidArgument, NotFound, Violation
from engine.catalogue import Catalogue
from engine.config.graders import grader, judges
from engine.config.job import DataSource as SourceConfig
from engine.config.spec_proto import spec_to_dict
from engine.errors import JobError
from finetuneflow.v1.evaluation_service_pb2 import CreateEvaluationRequest
from finetuneflow.v1.event_pb2 import ConfigResolved
from finetuneflow.v1.fine_tuning_job_pb2 import Checkpoint
from finetuneflow.v1.fine_tuning_job_spec_pb2 import DataSource, EvaluationSpec
from finetuneflow.v1.stage_result_pb2 import BaseModelIdentity, PreflightResult, TrainingResult
from finetuneflow.v1.work_pb2 import ComparedModel, Comparison
from gateway import views
from gateway.sql.tables import Work
from gateway.tuned_models import TUNED, find_checkpoint, split_name, trained_job

_MAX_SOURCES = 32


async def find_comparison(
    session: AsyncSession, tenant: str, catalogue: Catalogue, request: CreateEvaluationRequest
) -> tuple[Work | None, Comparison]:
    """Returns the models of a request, and the job whose settings and rows they are compared with; no job and no model
    to compare with for a base model that is measured alone.

    Raises InvalidArgument, NotFound, FailedPrecondition.
    """
    model, against = request.model, request.against
    if not model:
        raise _invalid("model", "is empty; name `ft:<job_id>`, `ft:<job_id>@<step>` or a base model")
    job, compared = await _found(session, tenant, catalogue, model, "model")
    if against:
        other, second = await _found(session, tenant, catalogue, against, "against")
    elif job is None:
        _check_data(request.data)
        spec = request.spec
        if not (request.data or spec.questions or spec.prompts or spec.harness_tasks):
            raise _invalid(
                "data",
                f"is empty; {model[:80]!r} is a base model, so there are no held-out rows: name rows to measure it on, "
                "a tuned model in `against`, or spec.questions, spec.prompts or spec.harness_tasks",
            )
        return None, Comparison(model=compared, data=request.data)
    else:
        other, second = None, ComparedModel(id=compared.base_model.id, base_model=compared.base_model)
    owner = job or other
    if owner is None:
        raise _invalid(
            "against",
            "is a base model like the other; one must be tuned, because its template and rows are used. Without "
            "`against` a base model is measured alone",
        )
    same_base = compared.base_model.id == second.base_model.id
    if against and same_base and compared.checkpoint.path == second.checkpoint.path:
        raise _invalid("against", f"is {against[:80]!r}, the same model as {model[:80]!r}")
    _check_data(request.data)
    return owner, Comparison(model=compared, against=second, data=request.data)


async def _found(
    session: AsyncSession, tenant: str, catalogue: Catalogue, name: str, field: str
) -> tuple[Work | None, ComparedModel]:
    if not name.startswith(TUNED):
        return None, find_base_model(catalogue, name, field)
    return await _tuned(session, tenant, name, field)


def find_base_model(catalogue: Catalogue, name: str, field: str) -> ComparedModel:
    """Returns a base model; `field` is the path of its name in the request. Raises NotFound."""
    try:
        catalogue.check(name)
    except JobError as error:
        problem = f"{error.message} A job's model is named `ft:<job_id>`."
        raise NotFound("MODEL_NOT_FOUND", problem, [Violation(field, problem)]) from error
    return ComparedModel(id=name, base_model=BaseModelIdentity(id=name))


async def find_judges(
    session: AsyncSession, tenant: str, evaluation: EvaluationSpec, path: str, *, lock: bool = False
) -> list[ComparedModel]:
    """Returns the tuned models that graders name as judges; `path` is that of the section. With `lock` none of their
    jobs is deleted before the transaction ends.

    Raises InvalidArgument, NotFound, FailedPrecondition.
    """
    found = {}
    for index, value in enumerate(evaluation.graders):
        for judge in judges(grader(MessageToDict(value))):
            if judge.model.startswith(TUNED) and judge.model not in found:
                field = f"{path}.graders[{index}].model"
                _, model = await _tuned(session, tenant, judge.model, field, lock=lock)
                found[judge.model] = model
    return list(found.values())


def judging_jobs(evaluation: EvaluationSpec) -> set[str]:
    """Returns the ids of the jobs whose models graders name as judges."""
    named = (judge.model for value in evaluation.graders for judge in judges(grader(MessageToDict(value))))
    return {parsed[0] for name in named if (parsed := split_name(name)) is not None}


async def _tuned(
    session: AsyncSession, tenant: str, name: str, field: str, *, lock: bool = False
) -> tuple[Work, ComparedModel]:
    parsed = split_name(name)
    if parsed is None:
        raise _invalid(field, f"is {name[:80]!r}; write `ft:<job_id>` or `ft:<job_id>@<step>`")
    job_id, step = parsed
    job = await trained_job(session, job_id, tenant, field, lock=lock)
    if step is None:
        # What the export packs. The training named it, so it was accepted.
        best = TrainingResult.FromString(job.training or b"")
        checkpoint = Checkpoint(
            job_id=job.id,
            step=best.best_step,
            path=best.best_checkpoint_path,
            manifest_sha256=best.best_checkpoint_manifest_sha256,
        )
    else:
        checkpoint = views.checkpoint(await find_checkpoint(session, job, step, field))
    return job, ComparedModel(
        id=name,
        base_model=PreflightResult.FromString(job.preflight or b"").base_model,
        checkpoint=checkpoint,
        trained_with=ConfigResolved.FromString(job.config or b"").resolved_spec,
    )


def _check_data(data: Sequence[DataSource]) -> None:
    if len(data) > _MAX_SOURCES:
        raise _invalid("data", f"has {len(data)} datasets; at most {_MAX_SOURCES} are allowed")
    for index, source in enumerate(data):
        try:
            SourceConfig.model_validate(spec_to_dict(source))
        except ValidationError as error:
            detail = error.errors()[0]
            path = ".".join(["", *map(str, detail["loc"])])
            raise _invalid(f"data[{index}]{path}", detail["msg"]) from error
        if source.HasField("weight"):
            raise _invalid(f"data[{index}].weight", "is for training; every row is evaluated once, so remove it")


def _invalid(field: str, problem: str) -> InvalidArgument:
    return InvalidArgument("INVALID_MODEL", f"{field} {problem}.", [Violation(field, problem)])
