"""EvaluationService and ExportService: work of one stage about a job's model, and what a job's own stages leave."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

import grpc
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue
from sqlmodel import and_, col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import FailedPrecondition, InvalidArgument, Unimplemented, Violation
from chassis.store.artifact_store import ArtifactStore
from engine.catalogue import Catalogue
from engine.config.conflicts import export_conflicts, push_conflicts
from engine.config.evaluation import needing_two_models
from engine.config.hub_reference import is_hub_reference
from engine.config.job import (
    CONVERTED_TYPES,
    PUSH_USE,
    JobConfig,
    base_model_config,
    unsupported,
    with_section,
)
from engine.config.section import NAME_PATTERN
from engine.config.spec_proto import config_to_spec, spec_to_dict
from engine.random_reference import RandomReference
from finetuneflow.v1 import evaluation_service_pb2 as evaluation_api
from finetuneflow.v1 import evaluation_service_pb2_grpc as evaluation_grpc
from finetuneflow.v1 import export_service_pb2 as export_api
from finetuneflow.v1 import export_service_pb2_grpc as export_grpc
from finetuneflow.v1.evaluation_pb2 import Evaluation
from finetuneflow.v1.event_pb2 import ConfigResolved
from finetuneflow.v1.export_pb2 import Export
from finetuneflow.v1.fine_tuning_job_spec_pb2 import EvaluationSpec, ExportFormat, ExportSpec
from finetuneflow.v1.work_pb2 import ComparedModel, Comparison
from gateway import views
from gateway.access.callers import tenant_of
from gateway.comparisons import find_base_model, find_comparison, find_judges
from gateway.evaluation_rows import refuse_without_rows, rows_page
from gateway.gguf_types import check_gguf_types
from gateway.harness_tasks import check_harness_tasks
from gateway.identifiers import new_id
from gateway.paging import page_of
from gateway.servicers.handlers import add_with_byte_stream
from gateway.servicers.work import WorkMethods, request_digest, state_names
from gateway.specs import (
    check_files_of_rows,
    check_judges,
    check_secrets,
    check_size,
    check_text,
    evaluation_sets,
    existing_datasets,
    push_secrets,
)
from gateway.sql.tables import SavedResult, Work, now
from gateway.tuned_models import TUNED, find_checkpoint, find_job, resolved_settings, split_name, trained_job
from gateway.uncancellable import in_thread
from gateway.waiting import Nodes, why_it_waits
from gateway.work import lifecycle
from gateway.work.kinds import EVALUATION, EXPORT, FINE_TUNING_JOB, no_such
from gateway.work.ledger import Decision
from gateway.work.projection import new_result

Context = grpc.aio.ServicerContext[Any, Any]
_Message = TypeVar("_Message", Evaluation, Export)
_NONE: Final[Mapping[str, str]] = MappingProxyType({})
_OF_ADAPTERS: Final = {
    ExportFormat.EXPORT_FORMAT_UNSPECIFIED: "adapter",
    ExportFormat.EXPORT_FORMAT_ADAPTER: "adapter",
    ExportFormat.EXPORT_FORMAT_GGUF_ADAPTER: "gguf_adapter",
}
"""Formats of the adapter alone, with their names."""
_GGUF: Final = ("gguf", "gguf_adapter")
"""Formats that llama.cpp reads."""
_CLEARABLE = ("prompts", "metrics", "graders", "gate", "questions", "json_schema")
"""Fields of an EvaluationSpec whose default is that there is none."""


class Results(Generic[_Message]):
    """The evaluations or the exports; `message` makes the resource of a row and the work that makes it."""

    def __init__(
        self,
        methods: WorkMethods,
        catalogue: Catalogue,
        message: Callable[[SavedResult, Work], _Message],
        nodes: Nodes | None = None,
    ) -> None:
        """`nodes` tells which types of GGUF files exporters make, and who could take work that waits."""
        self._nodes = nodes
        self.work = methods
        self._kind = methods.kind
        self._catalogue = catalogue
        self._message: Callable[[SavedResult, Work], _Message] = message

    async def create(self, request: export_api.CreateExportRequest, tenant: str) -> _Message:
        """Creates work about a job's model or a base model. Raises AlreadyExists, InvalidArgument, NotFound,
        FailedPrecondition."""
        check_text(request.spec)
        _check_secrets_of_push(request)
        model = request.model
        base = None
        if model and not model.startswith(TUNED):
            base = find_base_model(self._catalogue, model, "model")
            _check_export_of_base(request)

        async def find(session: AsyncSession) -> tuple[Work | None, Comparison | None]:
            if base is not None:
                return None, Comparison(model=base)
            job_id, step = _checkpoint_of(model)
            job = await trained_job(session, job_id, tenant)
            if step is None:
                return job, None
            checkpoint = views.checkpoint(await find_checkpoint(session, job, step, "model"))
            return job, Comparison(model=ComparedModel(id=model, checkpoint=checkpoint))

        digest = request_digest(request.spec, StringValue(value=model), *_secrets_given(request))
        return await self.add(find, request.spec, digest, request.request_id, tenant, secrets=request.secrets)

    async def add(
        self,
        find: Callable[[AsyncSession], Awaitable[tuple[Work | None, Comparison | None]]],
        spec: EvaluationSpec | ExportSpec,
        digest: str,
        request_id: str,
        tenant: str,
        clear: Sequence[str] = (),
        secrets: Mapping[str, str] = _NONE,
    ) -> _Message:
        """Adds the work, about the job, if any, and the models that `find` returns. Fields in `clear` do not take the
        job's own value; `secrets`, use → name, take the place of the job's."""
        earlier = await self.work.earlier(tenant, request_id, digest)
        if earlier is not None:
            return await self.get(earlier.id, tenant)
        async with self.work.database.read() as session:
            job, comparison = await find(session)
        work = self._new(job, spec, digest, comparison, tenant, clear, secrets)
        if self._nodes is not None and self._kind is EXPORT:
            # Resolved, because the types may be the job's own.
            await check_gguf_types(views.resolved_spec(work).export, "spec", self._nodes)

        async def within(decision: Decision) -> None:
            # Locked, so that no job is deleted at the same time: then its rows and its files would be gone.
            if job is not None:
                await trained_job(decision.session, job.id, tenant, lock=True)
            if work.start_job_id is not None:
                await trained_job(decision.session, work.start_job_id, tenant, "against", lock=True)
            if isinstance(spec, EvaluationSpec):
                # Resolved, because the job's own sets and judges may have been deleted since.
                measured = views.evaluation_settings(work)
                named = {dataset: field for field, dataset in evaluation_sets(measured, "spec")}
                sources = comparison.data if comparison is not None else ()
                named |= {
                    source.dataset: f"data[{index}].dataset"
                    for index, source in enumerate(sources)
                    if not is_hub_reference(source.dataset)
                }
                check_files_of_rows(await existing_datasets(decision.session, tenant, named), named)
                await find_judges(decision.session, tenant, measured, "spec", lock=True)
            else:
                secrets = push_secrets(views.resolved_spec(work))
                await check_secrets(decision.session, tenant, {f"secrets.{use}": name for use, name in secrets.items()})
            decision.session.add(new_result(work, self._kind, work.id))

        work = await self.work.create(work, request_id, within)
        return await self.get(work.id, tenant)

    async def get(self, result_id: str, tenant: str) -> _Message:
        async with self.work.database.read() as session:
            saved, work = await self._find(session, result_id, tenant)
            message: _Message = self._message(saved, work)
            if saved.id == work.id:
                attempts = await self.work.attempts(session, work)
                message.attempts.extend(map(views.attempt, attempts))
                if self._nodes is not None and attempts and attempts[-1].state == "READY":
                    message.waiting = await why_it_waits(session, attempts[-1], self._nodes)
            return message

    async def list(
        self, request: evaluation_api.ListEvaluationsRequest | export_api.ListExportsRequest, tenant: str
    ) -> tuple[list[_Message], str]:
        """Returns a page and the token of the next. NotFound for a job that does not exist."""
        states = state_names(request.states)
        page = page_of(request, self._kind.name, request.job_id, *states)
        query = _results_with_work().where(SavedResult.tenant == tenant, SavedResult.kind == self._kind.name)
        if request.job_id:
            query = query.where(SavedResult.job_id == request.job_id)
        if states:
            # A job's stage leaves its result when it is done, whatever the job does afterwards.
            alone = and_(col(SavedResult.id) == col(Work.id), col(Work.state).in_(states))
            left = col(SavedResult.id) != col(Work.id)
            query = query.where(or_(alone, left) if "JOB_STATE_SUCCEEDED" in states else alone)
        if page.after:
            query = query.where(col(SavedResult.id) < page.after)
        async with self.work.database.read() as session:
            if request.job_id and await find_job(session, request.job_id, tenant) is None:
                raise no_such(FINE_TUNING_JOB, request.job_id)
            rows = (await session.exec(query.order_by(col(SavedResult.id).desc()).limit(page.limit))).all()
        kept, token = page.cut(rows, lambda row: row[0].id)
        return [self._message(*row) for row in kept], token

    async def cancel(self, result_id: str, tenant: str) -> _Message:
        await self.check_alone(result_id, tenant, "cancel")
        async with self.work.ledger.decide(result_id, tenant, self._kind) as decision:
            lifecycle.cancel(decision)
        return await self.get(result_id, tenant)

    async def delete(self, result_id: str, tenant: str) -> None:
        await self.check_alone(result_id, tenant, "delete")
        await self.work.delete(result_id, tenant)

    async def check_alone(self, result_id: str, tenant: str, verb: str) -> None:
        """Raises FailedPrecondition for what a job's own stage left: the job has its events and its files."""
        async with self.work.database.read() as session:
            saved, work = await self._find(session, result_id, tenant)
        if saved.id != work.id:
            raise FailedPrecondition(
                "BELONGS_TO_JOB",
                f"The {self._kind.noun} {saved.id} belongs to fine-tuning job {work.id}; {verb} that job instead.",
                metadata={"job_id": work.id},
            )

    async def saved(self, result_id: str, tenant: str) -> SavedResult:
        """Returns the row of a result. NotFound."""
        async with self.work.database.read() as session:
            saved, _ = await self._find(session, result_id, tenant)
            return saved

    async def watch(self, result_id: str, request: Any, tenant: str) -> AsyncIterator[bytes]:
        await self.check_alone(result_id, tenant, "watch")
        async for response in self.work.watch(
            result_id, tenant, request.after_sequence, request.kinds, request.min_severity
        ):
            yield response

    async def events(self, result_id: str, request: Any, tenant: str) -> dict[str, Any]:
        """Returns the fields of the response."""
        await self.check_alone(result_id, tenant, "list the events of")
        events, through = await self.work.events(
            result_id, tenant, request.after_sequence, request.kinds, request.page_size
        )
        return {"events": events, "through_sequence": through}

    def _new(
        self,
        job: Work | None,
        spec: EvaluationSpec | ExportSpec,
        digest: str,
        comparison: Comparison | None,
        tenant: str,
        clear: Sequence[str],
        secrets: Mapping[str, str],
    ) -> Work:
        if job is not None:
            config = resolved_settings(job)
        else:
            assert comparison is not None  # noqa: S101 - without a job it is about a base model
            config = base_model_config(comparison.model.id)
        changes = spec_to_dict(spec)
        if self._kind is EVALUATION:
            # The job's own setting is about its own stage.
            changes.setdefault("enabled", True)
            # The tasks of a harness take long, and the job's own evaluation has their values.
            evaluation = config.evaluation.model_copy(update={"harness_tasks": [], "harness_limit": None})
            config = config.model_copy(update={"evaluation": evaluation})
        if self._kind is EXPORT:
            # The job's own push is about its own package.
            export = config.export.model_copy(update={"hub": None})
            config = config.model_copy(update={"export": export, "secrets": {**config.secrets, **secrets}})
        config = with_section(config, self._kind.name, changes, clear)
        if self._kind is EXPORT:
            config = _with_settings_of_formats(config, changes)
        check_judges(config.evaluation, self._catalogue, "spec")
        if not config.evaluation.enabled and self._kind is EVALUATION:
            message = "spec.enabled is false; remove it, because an evaluation that is created separately always runs."
            raise InvalidArgument("INVALID_CONFIG", message, [Violation("spec.enabled", message)])
        alone = comparison is not None and not comparison.HasField("against")
        if self._kind is EVALUATION and alone and (needing := needing_two_models(config.evaluation, "spec")):
            raise InvalidArgument("INVALID_CONFIG", f"{needing[0].field}: {needing[0].description}", needing)
        missing = [
            Violation(violation.field.replace(f"spec.{self._kind.name}.", "spec.", 1), violation.description)
            for violation in unsupported(config)
        ]
        if missing:
            raise Unimplemented("NOT_IMPLEMENTED", " ".join(violation.description for violation in missing), missing)
        resolved = config_to_spec(config)
        check_size(resolved)
        moment = now()
        return Work(
            id=new_id(self._kind.prefix),
            tenant=tenant,
            kind=self._kind.name,
            job_id=None if job is None else job.id,
            start_job_id=None if comparison is None or job is None else _other_job(comparison, job),
            comparison=None if comparison is None else comparison.SerializeToString(),
            request_sha256=digest,
            spec=spec.SerializeToString(),
            config=ConfigResolved(resolved_spec=resolved).SerializeToString(),
            pool=config.resources.pool if job is None else job.pool,
            priority=config.priority if job is None else job.priority,
            max_attempts=config.max_attempts if job is None else job.max_attempts,
            state="JOB_STATE_QUEUED",
            stage=self._kind.plan[0],
            create_time=moment,
            update_time=moment,
        )

    async def _find(self, session: AsyncSession, result_id: str, tenant: str) -> tuple[SavedResult, Work]:
        query = _results_with_work().where(
            SavedResult.id == result_id, SavedResult.tenant == tenant, SavedResult.kind == self._kind.name
        )
        found: tuple[SavedResult, Work] | None = (await session.exec(query)).one_or_none()
        if found is None:
            raise no_such(self._kind, result_id)
        return found


def _results_with_work() -> Any:
    """Selects results, each with the work that makes it."""
    return select(SavedResult, Work).join(Work, col(Work.id) == col(SavedResult.work_id))


def _with_settings_of_formats(config: JobConfig, given: Mapping[str, Any]) -> JobConfig:
    """Drops the job's own settings of forms that the export does not make. InvalidArgument for those that the request
    gives, and for forms that the model cannot have."""
    export = config.export
    needs = {"dtype": {"merged"}, "merge_base": {"merged", "gguf"}, "gguf_types": {"gguf", "gguf_adapter"}}
    dropped = [name for name, formats in needs.items() if name not in given and not formats & {*export.formats}]
    if "gguf_types" not in given and "gguf" not in export.formats and {*export.gguf_types} - {*CONVERTED_TYPES}:
        # Those of the job's models, which no adapter can have.
        dropped.append("gguf_types")
    unset = {name: type(export).model_fields[name].default for name in dropped}
    config = config.model_copy(update={"export": export.model_copy(update=unset)})
    values = config.model_dump()
    found = [
        Violation(each.field.replace("spec.export.", "spec.", 1), each.description) for each in export_conflicts(values)
    ]
    found += [Violation(each.field.removeprefix("spec."), each.description) for each in push_conflicts(values)]
    gguf = [format_ for format_ in export.formats if format_ in _GGUF]
    named = RandomReference.parse(config.base_model)
    if gguf and named and named.is_inl:
        problem = f"has {gguf[0]}, but llama.cpp has no INL models; use merged, which transformers loads."
        found.append(Violation("spec.formats", problem))
    if found:
        raise InvalidArgument("INVALID_CONFIG", f"{found[0].field} {found[0].description}", found)
    return config


def _other_job(comparison: Comparison, job: Work) -> str | None:
    """Returns the id of the other model's job, if that is another one."""
    others = {each.checkpoint.job_id for each in (comparison.model, comparison.against)} - {"", job.id}
    return others.pop() if others else None


def _check_secrets_of_push(request: export_api.CreateExportRequest) -> None:
    found = []
    for use, name in sorted(request.secrets.items()):
        if use != PUSH_USE:
            found.append(Violation(f"secrets.{use[:80]}", f"is no use of a secret here; the only one is {PUSH_USE}"))
        elif not request.spec.HasField("hub"):
            found.append(Violation(f"secrets.{use}", "is for a push to the hub; set spec.hub, or remove it"))
        elif not re.match(NAME_PATTERN, name):
            found.append(Violation(f"secrets.{use}", f"is {name[:80]!r}; a secret's name matches {NAME_PATTERN}"))
    if found:
        raise InvalidArgument("INVALID_CONFIG", f"{found[0].field} {found[0].description}.", found)


def _secrets_given(request: export_api.CreateExportRequest) -> Iterator[Message]:
    """Yields the secrets of the request; nothing, as earlier versions had nothing, if it has none."""
    if request.secrets:
        yield export_api.CreateExportRequest(secrets=request.secrets)


def _check_export_of_base(request: export_api.CreateExportRequest) -> None:
    """Raises InvalidArgument for what only the export of a tuned model can have, and without formats: the default is
    the adapter."""
    spec, model, found = request.spec, request.model[:80], []
    if not spec.formats:
        problem = f"is empty; {model!r} is a base model, so no job has a default: name merged, gguf, or both"
        found.append(Violation("spec.formats", problem))
    for index, format_ in enumerate(spec.formats):
        if format_ in _OF_ADAPTERS:
            name = _OF_ADAPTERS[format_]
            problem = f"is {name}; {model!r} is a base model and has no adapter: name merged, gguf, or both"
            found.append(Violation(f"spec.formats[{index}]", problem))
    if spec.HasField("merge_base"):
        problem = f"is about an adapter that is merged; {model!r} is a base model and has none, so remove it"
        found.append(Violation("spec.merge_base", problem))
    if spec.HasField("hub"):
        problem = (
            f"is for tuned models; {model!r} is a base model, which is its publisher's: download the package, and push "
            "it yourself if its licence allows that"
        )
        found.append(Violation("spec.hub", problem))
    if found:
        raise InvalidArgument("INVALID_CONFIG", f"{found[0].field} {found[0].description}.", found)


def _checkpoint_of(model: str) -> tuple[str, int | None]:
    """Returns the job's id, and the step or None for its best one, of `ft:<job_id>` or `ft:<job_id>@<step>`.

    Raises InvalidArgument.
    """
    if not model:
        problem = "is empty; name `ft:<job_id>`, `ft:<job_id>@<step>` or a base model"
        raise InvalidArgument("INVALID_MODEL", f"model {problem}.", [Violation("model", problem)])
    named = split_name(model)
    if named is None:
        problem = f"is {model[:80]!r}; write `ft:<job_id>` or `ft:<job_id>@<step>`"
        raise InvalidArgument("INVALID_MODEL", f"model {problem}.", [Violation("model", problem)])
    return named


def _compared(request: evaluation_api.CreateEvaluationRequest) -> Iterator[Message]:
    """Yields what the request has beyond a model; nothing, as earlier versions had nothing, if it has only that."""
    if request.against or request.data or request.clear_fields:
        yield evaluation_api.CreateEvaluationRequest(
            against=request.against, data=request.data, clear_fields=request.clear_fields
        )


def _check_clear_fields(request: evaluation_api.CreateEvaluationRequest) -> None:
    given = {field.name for field, _ in request.spec.ListFields()}
    found = []
    for index, name in enumerate(request.clear_fields):
        if name not in _CLEARABLE:
            found.append(
                Violation(f"clear_fields[{index}]", f"is {name[:80]!r}; it must be one of {', '.join(_CLEARABLE)}")
            )
        elif name in given:
            found.append(
                Violation(f"clear_fields[{index}]", f"is {name!r}, but spec.{name} is set; remove one of the two")
            )
    if found:
        raise InvalidArgument("INVALID_CONFIG", f"{found[0].field} {found[0].description}.", found)


class Evaluations(evaluation_grpc.EvaluationServiceServicer):
    """Served by the gateway."""

    def __init__(
        self, methods: WorkMethods, catalogue: Catalogue, store: ArtifactStore, nodes: Nodes | None = None
    ) -> None:
        """`nodes` tells which tasks of lm-evaluation-harness evaluators have, and who could take work that waits."""
        self._nodes = nodes
        self._results: Results[Evaluation] = Results(methods, catalogue, views.evaluation, nodes)
        self._catalogue = catalogue
        self._store = store

    async def CreateEvaluation(
        self, request: evaluation_api.CreateEvaluationRequest, context: Context
    ) -> evaluation_api.CreateEvaluationResponse:
        check_text(request)
        _check_clear_fields(request)
        tenant = tenant_of(context)

        async def find(session: AsyncSession) -> tuple[Work | None, Comparison | None]:
            return await find_comparison(session, tenant, self._catalogue, request)

        digest = request_digest(request.spec, StringValue(value=request.model), *_compared(request))
        if self._nodes is not None and not await self._results.work.earlier(tenant, request.request_id, digest):
            await check_harness_tasks(request.spec.harness_tasks, "spec", self._nodes)
        made = await self._results.add(
            find, request.spec, digest, request.request_id, tenant, list(request.clear_fields)
        )
        return evaluation_api.CreateEvaluationResponse(evaluation=made)

    async def GetEvaluation(
        self, request: evaluation_api.GetEvaluationRequest, context: Context
    ) -> evaluation_api.GetEvaluationResponse:
        found = await self._results.get(request.evaluation_id, tenant_of(context))
        return evaluation_api.GetEvaluationResponse(evaluation=found)

    async def ListEvaluations(
        self, request: evaluation_api.ListEvaluationsRequest, context: Context
    ) -> evaluation_api.ListEvaluationsResponse:
        listed, token = await self._results.list(request, tenant_of(context))
        return evaluation_api.ListEvaluationsResponse(evaluations=listed, next_page_token=token)

    async def CancelEvaluation(
        self, request: evaluation_api.CancelEvaluationRequest, context: Context
    ) -> evaluation_api.CancelEvaluationResponse:
        cancelled = await self._results.cancel(request.evaluation_id, tenant_of(context))
        return evaluation_api.CancelEvaluationResponse(evaluation=cancelled)

    async def DeleteEvaluation(
        self, request: evaluation_api.DeleteEvaluationRequest, context: Context
    ) -> evaluation_api.DeleteEvaluationResponse:
        await self._results.delete(request.evaluation_id, tenant_of(context))
        return evaluation_api.DeleteEvaluationResponse()

    def WatchEvaluation(self, request: evaluation_api.WatchEvaluationRequest, context: Context) -> AsyncIterator[bytes]:
        return self._results.watch(request.evaluation_id, request, tenant_of(context))

    async def ListEvaluationEvents(
        self, request: evaluation_api.ListEvaluationEventsRequest, context: Context
    ) -> evaluation_api.ListEvaluationEventsResponse:
        page = await self._results.events(request.evaluation_id, request, tenant_of(context))
        return evaluation_api.ListEvaluationEventsResponse(**page)

    async def ListEvaluationRows(
        self, request: evaluation_api.ListEvaluationRowsRequest, context: Context
    ) -> evaluation_api.ListEvaluationRowsResponse:
        tenant = tenant_of(context)
        saved = await self._results.saved(request.evaluation_id, tenant)
        result = refuse_without_rows(saved.result, saved.id)
        return await in_thread(rows_page, request, result, tenant, self._store)


class Exports(export_grpc.ExportServiceServicer):
    """Served by the gateway."""

    def __init__(self, methods: WorkMethods, catalogue: Catalogue, nodes: Nodes | None = None) -> None:
        """`nodes` tells which types of GGUF files exporters make, and who could take work that waits."""
        self._results: Results[Export] = Results(methods, catalogue, views.export, nodes)

    async def CreateExport(
        self, request: export_api.CreateExportRequest, context: Context
    ) -> export_api.CreateExportResponse:
        made = await self._results.create(request, tenant_of(context))
        return export_api.CreateExportResponse(export=made)

    async def GetExport(self, request: export_api.GetExportRequest, context: Context) -> export_api.GetExportResponse:
        return export_api.GetExportResponse(export=await self._results.get(request.export_id, tenant_of(context)))

    async def ListExports(
        self, request: export_api.ListExportsRequest, context: Context
    ) -> export_api.ListExportsResponse:
        listed, token = await self._results.list(request, tenant_of(context))
        return export_api.ListExportsResponse(exports=listed, next_page_token=token)

    async def CancelExport(
        self, request: export_api.CancelExportRequest, context: Context
    ) -> export_api.CancelExportResponse:
        cancelled = await self._results.cancel(request.export_id, tenant_of(context))
        return export_api.CancelExportResponse(export=cancelled)

    async def DeleteExport(
        self, request: export_api.DeleteExportRequest, context: Context
    ) -> export_api.DeleteExportResponse:
        await self._results.delete(request.export_id, tenant_of(context))
        return export_api.DeleteExportResponse()

    def WatchExport(self, request: export_api.WatchExportRequest, context: Context) -> AsyncIterator[bytes]:
        return self._results.watch(request.export_id, request, tenant_of(context))

    async def ListExportEvents(
        self, request: export_api.ListExportEventsRequest, context: Context
    ) -> export_api.ListExportEventsResponse:
        page = await self._results.events(request.export_id, request, tenant_of(context))
        return export_api.ListExportEventsResponse(**page)


def add_evaluations_to_server(servicer: Evaluations, server: Any) -> None:
    """Registers the servicer; WatchEvaluation yields serialised responses."""
    service = evaluation_api.DESCRIPTOR.services_by_name["EvaluationService"]
    add_with_byte_stream(
        service, "WatchEvaluation", evaluation_grpc.add_EvaluationServiceServicer_to_server, servicer, server
    )


def add_exports_to_server(servicer: Exports, server: Any) -> None:
    """Registers the servicer; WatchExport yields serialised responses."""
    service = export_api.DESCRIPTOR.services_by_name["ExportService"]
    add_with_byte_stream(service, "WatchExport", export_grpc.add_ExportServiceServicer_to_server, servicer, server)
