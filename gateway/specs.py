"""Checks of a job's spec: configuration, datasets, text and size."""

from collections.abc import Iterator, Mapping, Sequence

from google.protobuf.message import Message
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import InvalidArgument, NotFound, Unimplemented, Violation
from engine.catalogue import Catalogue
from engine.config.evaluation import Evaluation
from engine.config.graders import BASE, grader, judges
from engine.config.hub_reference import is_hub_reference
from engine.config.job import PUSH_USE, JobConfig, job_config, unsupported
from engine.config.spec_proto import data_sources, spec_to_dict
from engine.config.start import StartSource
from engine.data.endings import QUESTION_ENDINGS, ending_of, is_adapter
from engine.errors import JobError
from engine.random_reference import RandomReference
from finetuneflow.v1.fine_tuning_job_pb2 import Stage
from finetuneflow.v1.fine_tuning_job_spec_pb2 import EvaluationSpec, FineTuningJobSpec, IntegrationSpec
from finetuneflow.v1.work_pb2 import Assignment
from gateway.secret_store import existing
from gateway.sql.tables import UploadedDataset

UPLOADED = "ds_"
"""Prefix of a start_from that is an uploaded adapter."""
MAX_SPEC_BYTES = 48 << 10
"""Size limit of a spec: resolved, with every field set, it must fit into one event."""


def dataset_ids(spec: FineTuningJobSpec) -> Iterator[str]:
    """Yields every dataset that a spec names, an uploaded adapter included."""
    for _, source in data_sources(spec):
        yield source.dataset
    if spec.start_from.startswith(UPLOADED):
        yield spec.start_from
    for _, dataset in evaluation_sets(spec.evaluation, ""):
        yield dataset


def evaluation_sets(evaluation: EvaluationSpec, path: str) -> Iterator[tuple[str, str]]:
    """Yields the datasets that an evaluation names, each with the path of its field; `path` is that of the section."""
    for name in ("questions", "regression"):
        if (dataset := getattr(evaluation, name)).startswith(UPLOADED):
            yield f"{path}.{name}", dataset


def check_spec(spec: FineTuningJobSpec, catalogue: Catalogue, source: StartSource | None = None) -> JobConfig:
    """Returns the configuration of a job with this spec, which may start from the adapter of `source`.

    Raises if it is invalid; does not look up its datasets.
    """
    check_size(spec)
    check_text(spec)
    config = job_config(spec_to_dict(spec))
    if source is not None:
        source.check(config)
    missing = unsupported(config)
    if missing:
        fields = ", ".join(violation.field for violation in missing)
        raise Unimplemented(
            "NOT_IMPLEMENTED", f"These fields are not available yet: {fields}. Remove or change them.", missing
        )
    catalogue.check(config.base_model, has_corpus=True)
    named = RandomReference.parse(config.base_model)
    if source is None and named and named.corpus_sha256:
        # Only the job that trained the tokenizer says where it is.
        catalogue.check(config.base_model)
    check_judges(config.evaluation, catalogue, "spec.evaluation")
    return config


def check_judges(evaluation: Evaluation, catalogue: Catalogue, path: str) -> None:
    """Raises InvalidArgument if a grader names a judge that is no base model; `path` is that of the section.

    Tuned models are looked up by `gateway.comparisons.find_judges`.
    """
    found = []
    for index, value in enumerate(evaluation.graders):
        for judge in judges(grader(value)):
            try:
                if judge.model != BASE and not judge.model.startswith("ft:"):
                    catalogue.check(judge.model)
            except JobError as error:
                message = f"{error.message} A judge is a base model, a tuned model (`ft:<job_id>`), or `{BASE}`."
                found.append(Violation(f"{path}.graders[{index}].model", message))
    if found:
        raise InvalidArgument("INVALID_CONFIG", f"{found[0].field}: {found[0].description}", found)


async def check_datasets(session: AsyncSession, tenant: str, spec: FineTuningJobSpec) -> list[UploadedDataset]:
    """Returns the uploaded datasets that the spec names. Raises NotFound if one does not exist.

    Call it in the transaction that inserts the job, so that none can be deleted in between. Datasets of a hub are
    checked by preflight.
    """
    named: dict[str, str] = {}
    for field, source in data_sources(spec):
        if not is_hub_reference(source.dataset):
            named.setdefault(source.dataset, field)
    start = spec.start_from if spec.start_from.startswith(UPLOADED) else ""
    if start:
        named.setdefault(start, "spec.start_from")
    for field, dataset in evaluation_sets(spec.evaluation, "spec.evaluation"):
        named.setdefault(dataset, field)
    rows = await existing_datasets(session, tenant, named)
    check_files_of_rows([row for row in rows if named[row.id] != "spec.start_from"], named)
    for row in rows:
        if row.id == start and not is_adapter(row.filename):
            way = "upload one with `ftf datasets upload-adapter FOLDER`"
            problem = f"Dataset {row.id} ({row.filename}) is no adapter; {way}."
            raise InvalidArgument("NOT_AN_ADAPTER", problem, [Violation("spec.start_from", problem)])
    return rows


def check_files_of_rows(datasets: Sequence[UploadedDataset], named: Mapping[str, str]) -> None:
    """Raises InvalidArgument for a dataset that by its file's name cannot hold what it is named for: rows, or critical
    questions. `named`: id → path of the field. What the file contains, only a worker reads."""
    for row in datasets:
        field = named[row.id]
        if is_adapter(row.filename):
            problem = f"Dataset {row.id} is an adapter ({row.filename}), not rows; name it in start_from."
            raise InvalidArgument("ADAPTER_AS_DATA", problem, [Violation(field, problem)])
        if field.endswith(".questions") and ending_of(row.filename) not in QUESTION_ENDINGS:
            problem = f"Dataset {row.id} ({row.filename}) is no JSON Lines, which critical questions must be (.jsonl)."
            raise InvalidArgument("BAD_QUESTIONS", problem, [Violation(field, problem)])


async def existing_datasets(session: AsyncSession, tenant: str, named: Mapping[str, str]) -> list[UploadedDataset]:
    """Returns uploaded datasets, locked against deletion. `named`: id → path of the field. Raises NotFound."""
    query = select(UploadedDataset).where(UploadedDataset.tenant == tenant, col(UploadedDataset.id).in_(list(named)))
    rows = list((await session.exec(query.with_for_update(read=True))).all())
    known = {row.id for row in rows}
    unknown = [
        Violation(field, f"there is no dataset {id!r}; upload it first")
        for id, field in named.items()
        if id not in known
    ]
    if unknown:
        raise NotFound("DATASET_NOT_FOUND", "; ".join(f"{v.field}: {v.description}" for v in unknown) + ".", unknown)
    return rows


def named_secrets(spec: FineTuningJobSpec) -> dict[str, str]:
    """Returns the secrets that a spec names: path of the field → name."""
    named = {f"spec.secrets.{use}": name for use, name in spec.secrets.items()}
    for index, integration in enumerate(spec.integrations):
        named |= integration_secrets(integration, f"spec.integrations[{index}]")
    return named


def integration_secrets(spec: IntegrationSpec, path: str) -> dict[str, str]:
    """Returns the secret that an integration names, if any; `path` is that of the integration."""
    service = spec.WhichOneof("service")
    name = getattr(getattr(spec, service), "secret", "") if service else ""
    return {f"{path}.{service}.secret": name} if name else {}


async def check_secrets(session: AsyncSession, tenant: str, named: Mapping[str, str]) -> None:
    """Raises NotFound if the tenant does not have a secret. `named`: path of the field → name."""
    known = await existing(session, tenant, list(named.values()))
    unknown = [
        Violation(path, f"there is no secret {name!r}; set it with `ftf secrets set {name}`")
        for path, name in sorted(named.items())
        if name not in known
    ]
    if unknown:
        raise NotFound("SECRET_NOT_FOUND", "; ".join(f"{v.field}: {v.description}" for v in unknown) + ".", unknown)


def secrets_of(assignment: Assignment) -> set[str]:
    """Returns the names of the secrets that the assignment's stage needs: none if it reads and writes nothing of a
    hub."""
    spec, found = assignment.merged_spec, set()
    # Of a job's own datasets, the other stages read the token shards that preflight made, unless a corpus is streamed.
    streams = assignment.stage == Stage.STAGE_TRAINING and spec.hyperparameters.streaming
    named = dataset_ids(spec) if assignment.stage == Stage.STAGE_PREFLIGHT or streams else ()
    if assignment.stage == Stage.STAGE_EVALUATION:
        named = (source.dataset for source in assignment.comparison.data)
    if "hub_token" in spec.secrets and ("/" in spec.base_model or any(map(is_hub_reference, named))):
        found.add(spec.secrets["hub_token"])
    if assignment.stage == Stage.STAGE_EXPORT:
        found |= set(push_secrets(assignment.resolved_spec).values())
    return found


def push_secrets(spec: FineTuningJobSpec) -> dict[str, str]:
    """Returns the secret for a push to the hub, use → name; nothing if the spec's export is not pushed."""
    name = spec.secrets.get(PUSH_USE)
    return {PUSH_USE: name} if name and spec.export.HasField("hub") else {}


def check_text(spec: Message) -> None:
    """Raises InvalidArgument for NUL characters: PostgreSQL cannot search text that contains one."""
    found = [Violation(path, "holds a NUL character; remove it") for path in _nul_paths(spec, "spec")]
    if found:
        raise InvalidArgument("NUL_CHARACTER", f"{found[0].field} {found[0].description}.", found)


def _nul_paths(value: object, path: str) -> Iterator[str]:
    match value:
        case str():
            if "\0" in value:
                yield path
        case Message():
            for field, inner in value.ListFields():
                yield from _nul_paths(inner, f"{path}.{field.name}")
        case Mapping():
            for key, inner in value.items():
                yield from _nul_paths(key, path)
                yield from _nul_paths(inner, f"{path}[{key!r}]")
        case Sequence() if not isinstance(value, bytes):
            for index, inner in enumerate(value):
                yield from _nul_paths(inner, f"{path}[{index}]")


def check_size(spec: FineTuningJobSpec) -> None:
    """Raises InvalidArgument for a spec that would not fit into an event."""
    size = spec.ByteSize()
    if size > MAX_SPEC_BYTES:
        message = (
            f"The spec has {size:,} bytes; the limit is {MAX_SPEC_BYTES:,}. "
            "Shorten evaluation.prompts, chat_template or system_prompt."
        )
        raise InvalidArgument("SPEC_TOO_LARGE", message, [Violation("spec", message)])
