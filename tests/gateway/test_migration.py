"""The migration of a database of schema version 0002, whose jobs are in every state.

sql/schema_0002.sql is the database; sql/answers_0002.json holds the answers of the version that wrote it.
"""

import asyncio
import json
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from google.protobuf import json_format
from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import SQLModel, select

import gateway.sql
from chassis.errors import NotFound
from chassis.store.artifact_store import ArtifactStore
from engine.catalogue import Catalogue
from engine.config.recipes import recipe
from finetuneflow.v1 import artifact_service_pb2 as artifact_api
from finetuneflow.v1 import evaluation_service_pb2 as evaluation_api
from finetuneflow.v1 import export_service_pb2 as export_api
from finetuneflow.v1 import fine_tuning_service_pb2 as job_api
from finetuneflow.v1 import model_service_pb2 as model_api
from finetuneflow.v1.event_pb2 import Event, StageReleased
from finetuneflow.v1.fine_tuning_job_pb2 import FineTuningJob, JobState, Stage
from finetuneflow.v1.fine_tuning_job_spec_pb2 import EvaluationSpec, FineTuningJobSpec, StartMode
from finetuneflow.v1.work_pb2 import Directive
from gateway.servicers import fine_tuning, results
from gateway.servicers.artifacts import Artifacts
from gateway.servicers.models import Models
from gateway.servicers.work import WorkMethods
from gateway.sql.database import Database
from gateway.sql.tables import Attempt, SavedResult, Work
from gateway.work.kinds import EVALUATION, EXPORT, FINE_TUNING_JOB
from gateway.work.ledger import Ledger
from gateway.work.worker_requests import WorkerRequests
from services.attempt_inputs import VersionMismatch, job_configuration
from tests.fakes.planning import NoTrainers
from tests.gateway.conftest import Recorder
from tests.gateway.jobs import Worker
from tests.servers.postgres import PostgresServer

SQL = Path(__file__).parent / "sql"
ANSWERS: dict[str, dict[str, Any]] = json.loads((SQL / "answers_0002.json").read_text())
CASES = {answer["fine_tuning_job"]["spec"]["display_name"]: id for id, answer in ANSWERS["jobs"].items()}
ENDED = ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED")
UNENDED = [case for case, id in CASES.items() if ANSWERS["jobs"][id]["fine_tuning_job"]["state"] not in ENDED]
OLD_TABLES = ("datasets", "jobs", "attempts", "events", "metrics", "checkpoints", "artifacts", "evaluations", "exports")
LEFT_DEFAULTS = [[("attempts", "reason")], [("attempts", "message")]]

Rows = list[dict[str, Any]]


def old_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript((SQL / "schema_0002.sql").read_text())


@pytest.fixture(scope="module")
def old() -> Iterator[dict[str, Rows]]:
    """The rows of the old tables."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript((SQL / "schema_0002.sql").read_text())
        database.row_factory = sqlite3.Row
        rows = {
            table: [dict(row) for row in database.execute(f"SELECT * FROM {table}")]  # noqa: S608
            for table in OLD_TABLES
        }
        for job in rows["jobs"]:
            job["labels"] = json.loads(job["labels"])
        yield rows


def migrate_to(connection: sa.Connection, revision: str) -> None:
    config = Config()
    folder = Path(gateway.sql.__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def load(connection: sa.Connection, old: dict[str, Rows]) -> None:
    """Creates the old schema and inserts the old rows."""
    migrate_to(connection, "0002")
    metadata = sa.MetaData()
    metadata.reflect(connection)
    for name in OLD_TABLES:
        table = metadata.tables[name]
        # SQLite's booleans are numbers.
        booleans = [column.name for column in table.columns if isinstance(column.type, sa.Boolean)]
        rows = [row | {column: bool(row[column]) for column in booleans} for row in old[name]]
        connection.execute(table.insert(), rows)


@asynccontextmanager
async def postgres_database(server: PostgresServer) -> AsyncIterator[str]:
    """An empty database of its own on the server; yields its URL."""
    url = sa.make_url(server.url).set(drivername="postgresql+asyncpg")
    admin = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with admin.connect() as connection:
        await connection.exec_driver_sql("CREATE DATABASE migrated")
        yield url.set(drivername="postgresql", database="migrated").render_as_string()
        await connection.exec_driver_sql("DROP DATABASE migrated WITH (FORCE)")
    await admin.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path, old: dict[str, Rows]) -> AsyncIterator[str]:
    """A database of schema version 0002."""
    if request.param == "sqlite":
        old_database(tmp_path / "old.sqlite")
        yield f"sqlite:///{tmp_path / 'old.sqlite'}"
        return
    async with postgres_database(request.getfixturevalue("postgres")) as url:
        engine = create_async_engine(sa.make_url(url).set(drivername="postgresql+asyncpg"))
        async with engine.begin() as connection:
            await connection.run_sync(load, old)
        await engine.dispose()
        yield url


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    """The same, migrated. Takes the place of the empty database that other tests use."""
    database = await Database.open(url)
    yield database
    await database.close()


class NoLiveEvents:
    """Nothing is watched here."""


@dataclass
class MigratedGateway:
    jobs: fine_tuning.FineTuning
    evaluations: results.Evaluations
    exports: results.Exports
    artifacts: Artifacts
    models: Models
    work: WorkMethods
    ledger: Ledger
    requests: WorkerRequests
    recorder: Recorder

    async def job(self, job_id: str) -> FineTuningJob:
        request = job_api.GetFineTuningJobRequest(job_id=job_id)
        return (await self.jobs.GetFineTuningJob(request, CONTEXT)).fine_tuning_job

    async def open_attempt(self, job_id: str) -> Attempt | None:
        async with self.ledger.database.read() as session:
            query = select(Attempt).where(Attempt.work_id == job_id, Attempt.state != "ENDED")
            return (await session.exec(query)).one_or_none()


CONTEXT: grpc.aio.ServicerContext[Any, Any] = None  # type: ignore[assignment]


@pytest.fixture
def gateway_stack(database: Database, ledger: Ledger, recorder: Recorder, tmp_path: Path) -> MigratedGateway:
    store = ArtifactStore(f"file://{tmp_path / 'artifacts'}")
    catalogue = Catalogue(tmp_path)

    def methods(kind: Any) -> WorkMethods:
        return WorkMethods(kind, ledger, NoLiveEvents(), store)  # type: ignore[arg-type]

    return MigratedGateway(
        fine_tuning.FineTuning(methods(FINE_TUNING_JOB), catalogue, None),  # type: ignore[arg-type]
        results.Evaluations(methods(EVALUATION), catalogue, store),
        results.Exports(methods(EXPORT), catalogue),
        Artifacts(database, store),
        Models(database, catalogue),
        methods(FINE_TUNING_JOB),
        ledger,
        WorkerRequests(ledger, NoTrainers()),
        recorder,
    )


def answer(message: Message, old: dict[str, Any]) -> dict[str, Any]:
    """The message's fields that the old answer has too: a newer version may add some."""
    fields = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return {name: value for name, value in fields.items() if name in old}


async def test_migrated_jobs_are_read_unchanged(gateway_stack: MigratedGateway, old: dict[str, Rows]) -> None:
    """A user who updates the server finds the whole history of the jobs."""
    listed = await gateway_stack.jobs.ListFineTuningJobs(job_api.ListFineTuningJobsRequest(page_size=1000), CONTEXT)
    assert [job.id for job in listed.fine_tuning_jobs] == list(ANSWERS["jobs"])
    for id, before in ANSWERS["jobs"].items():
        assert answer(await gateway_stack.job(id), before["fine_tuning_job"]) == before["fine_tuning_job"]
        page = await gateway_stack.jobs.ListFineTuningJobEvents(
            job_api.ListFineTuningJobEventsRequest(job_id=id, page_size=1000), CONTEXT
        )
        assert list(page.events) == [Event.FromString(row["event"]) for row in old["events"] if row["job_id"] == id]
        for kind in ("log", "state_changed"):
            selected = await gateway_stack.jobs.ListFineTuningJobEvents(
                job_api.ListFineTuningJobEventsRequest(job_id=id, page_size=1000, kinds=[kind]), CONTEXT
            )
            assert list(selected.events) == [event for event in page.events if event.WhichOneof("payload") == kind]
        checkpoints = await gateway_stack.jobs.ListCheckpoints(job_api.ListCheckpointsRequest(job_id=id), CONTEXT)
        metrics = await gateway_stack.jobs.GetMetrics(job_api.GetMetricsRequest(job_id=id), CONTEXT)
        artifacts = await gateway_stack.artifacts.ListArtifacts(
            artifact_api.ListArtifactsRequest(job_id=id, page_size=1000), CONTEXT
        )
        for messages, name in (
            (checkpoints.checkpoints, "checkpoints"),
            (metrics.series, "metrics"),
            (artifacts.artifacts, "artifacts"),
        ):
            assert len(messages) == len(before[name]), (name, before)
            for message, each in zip(messages, before[name], strict=True):
                assert answer(message, each) == each


async def test_migrated_evaluations_exports_and_models_are_read_unchanged(gateway_stack: MigratedGateway) -> None:
    listed = await gateway_stack.evaluations.ListEvaluations(
        evaluation_api.ListEvaluationsRequest(page_size=1000), CONTEXT
    )
    assert [each.id for each in listed.evaluations] == list(ANSWERS["evaluations"])
    for id, before in ANSWERS["evaluations"].items():
        request = evaluation_api.GetEvaluationRequest(evaluation_id=id)
        found = (await gateway_stack.evaluations.GetEvaluation(request, CONTEXT)).evaluation
        assert answer(found, before) == before
        assert found.state == JobState.JOB_STATE_SUCCEEDED
    exports = await gateway_stack.exports.ListExports(export_api.ListExportsRequest(page_size=1000), CONTEXT)
    assert [each.id for each in exports.exports] == list(ANSWERS["exports"])
    for id, before in ANSWERS["exports"].items():
        made = (await gateway_stack.exports.GetExport(export_api.GetExportRequest(export_id=id), CONTEXT)).export
        assert answer(made, before) == before
    models = await gateway_stack.models.ListModels(model_api.ListModelsRequest(page_size=1000), CONTEXT)
    tuned = [model for model in models.models if model.id.startswith("ft:")]
    assert [model.id for model in tuned] == list(ANSWERS["models"])
    for model in tuned:
        assert answer(model, ANSWERS["models"][model.id]) == ANSWERS["models"][model.id]


async def test_migration_keeps_all_rows(database: Database, old: dict[str, Rows]) -> None:
    """Rows of every tenant, also those that no method returns."""
    renamed = {"jobs": "work", "evaluations": "results", "exports": "results"}
    for name, rows in old.items():
        table = SQLModel.metadata.tables[renamed.get(name, name)]
        query = sa.select(table)
        if table.name == "results":
            query = query.where(table.c.kind == name.removesuffix("s"))
        async with database.read() as session:
            found = [dict(row) for row in (await (await session.connection()).execute(query)).mappings()]
        keys = [column.name for column in table.primary_key]
        by_key = {tuple(row[key] for key in keys): row for row in found}
        assert len(found) == len(rows), name
        for before in rows:
            expected = {new_column(table.name, column): value for column, value in before.items()}
            row = by_key[tuple(expected[key] for key in keys)]
            assert {column: row[column] for column in expected} == expected
            if table.name == "work":
                assert (row["kind"], row["job_id"]) == (FINE_TUNING_JOB.name, None)
            if table.name == "results":
                assert row["work_id"] == row["job_id"]


def new_column(table: str, column: str) -> str:
    return "work_id" if column == "job_id" and table != "results" else column


async def test_migration_keeps_tenants_separate(gateway_stack: MigratedGateway, old: dict[str, Rows]) -> None:
    (other,) = (row for row in old["evaluations"] if row["tenant"] == "other")
    request = evaluation_api.GetEvaluationRequest(evaluation_id=other["id"])
    with pytest.raises(NotFound):
        await gateway_stack.evaluations.GetEvaluation(request, CONTEXT)
    mine = await gateway_stack.evaluations._results.get(other["id"], "other")
    assert mine.job_id == other["job_id"]


async def test_repeated_create_returns_migrated_job(gateway_stack: MigratedGateway, old: dict[str, Rows]) -> None:
    """A client that lost a response before the update must not train twice after it."""
    for row in old["jobs"]:
        if row["tenant"] == "default":
            repeated = job_api.CreateFineTuningJobRequest(
                spec=FineTuningJobSpec.FromString(row["spec"]), request_id=row["request_id"]
            )
            assert (await gateway_stack.jobs.CreateFineTuningJob(repeated, CONTEXT)).fine_tuning_job.id == row["id"]
    assert len(old["jobs"]) == len(ANSWERS["jobs"]) + 2


AUTOMATIC = (
    "per_device_train_batch_size", "gradient_accumulation_steps",
    "per_device_eval_batch_size", "warmup_ratio", "eval_steps", "save_steps", "packing", "group_by_length"
)  # fmt: skip


async def test_migration_merges_recipes_into_specs(database: Database, old: dict[str, Rows]) -> None:
    """Preflight no longer merges: a waiting job would otherwise train with another learning rate."""
    async with database.read() as session:
        merged = {work.id: work.merged_spec for work in (await session.exec(select(Work))).all()}
    for id, before in ANSWERS["jobs"].items():
        job = before["fine_tuning_job"]
        if "shrunk" in job["spec"]["display_name"]:
            continue
        expected = json_format.ParseDict(before.get("merged_spec") or job["resolved_spec"], FineTuningJobSpec())
        # The old version had none of these; every other field is one that it knew.
        expected.priority, expected.start_mode = 0, StartMode.START_MODE_CONTINUE
        expected.lora.use_dora, expected.lora.init_lora_weights = False, "default"
        expected.hyperparameters.label_smoothing_factor = 0.0
        expected.hyperparameters.attn_implementation = "auto"
        expected.hyperparameters.min_learning_rate_ratio = 0.0
        expected.resources.parallelism = "auto"
        expected.hyperparameters.streaming = False
        expected.resources.parallelism = "auto"
        preset = recipe(job["spec"].get("recipe", "default")).values.get("evaluation", {})
        expected.evaluation.max_rows = preset.get("max_rows", 200)
        expected.evaluation.regression = "general"
        expected.export.dtype, expected.export.merge_base = "", "trained"
        # The default recipe of that version set these; preflight chooses them now unless the job or its recipe does.
        said = {
            **recipe(job["spec"].get("recipe", "default")).values["hyperparameters"],
            **job["spec"].get("hyperparameters", {}),
        }
        for name in set(AUTOMATIC) - {*said}:
            expected.hyperparameters.ClearField(name)
        found = FineTuningJobSpec.FromString(merged[id])
        assert found == expected, job["spec"]
    chosen = FineTuningJobSpec.FromString(merged[CASES["recipe"]])
    assert (chosen.recipe, chosen.lora.r, chosen.holdout_fraction) == ("qlora-3b", 4, 0.0)
    assert chosen.lora.HasField("lora_alpha") and chosen.hyperparameters.HasField("num_epochs")
    phases = FineTuningJobSpec.FromString(merged[CASES["phases"]]).phases
    assert [(phase.display_name, phase.num_epochs) for phase in phases] == [("basics", 1), ("style", 0.5)]


async def worker_of(gateway_stack: MigratedGateway, attempt: Attempt) -> Worker:
    """The worker that holds the attempt, or claims it now."""
    worker = Worker(
        gateway_stack.requests, attempt.claim_id or f"{attempt.stage}{attempt.attempt}"[-32:].ljust(32, "0")
    )
    claimed = await worker.claim(attempt)
    assert claimed.HasField("assignment"), claimed
    assert Stage.Name(worker.assignment.stage) == attempt.stage
    assert worker.assignment.fine_tuning_job_id == attempt.work_id
    assert worker.assignment.merged_spec.base_model == worker.assignment.spec.base_model
    worker.ordinal = attempt.next_ordinal
    return worker


@pytest.mark.parametrize("case", UNENDED)
async def test_migrated_running_job_continues_to_its_end(gateway_stack: MigratedGateway, case: str) -> None:
    """An update during a training must not fail any job, in any stage."""
    id = CASES[case]
    job = await gateway_stack.job(id)
    checkpoints = len(ANSWERS["jobs"][id]["checkpoints"])
    if job.state == JobState.JOB_STATE_CANCELLING:
        attempt = await gateway_stack.open_attempt(id)
        assert attempt is not None
        worker = await worker_of(gateway_stack, attempt)
        assert (await worker.report()).directive == Directive.DIRECTIVE_CANCEL
        await worker.report(StageReleased(reason="CANCELLED"))
        assert (await gateway_stack.job(id)).state == JobState.JOB_STATE_CANCELLED
        return
    if job.state == JobState.JOB_STATE_PAUSING:
        attempt = await gateway_stack.open_attempt(id)
        assert attempt is not None
        worker = await worker_of(gateway_stack, attempt)
        assert (await worker.report()).directive == Directive.DIRECTIVE_PAUSE
        await worker.report(StageReleased(reason="PAUSED"))
        job = await gateway_stack.job(id)
        assert job.state == JobState.JOB_STATE_PAUSED
    if job.state == JobState.JOB_STATE_PAUSED:
        await gateway_stack.jobs.ResumeFineTuningJob(job_api.ResumeFineTuningJobRequest(job_id=id), CONTEXT)
    trained = False
    while attempt := await gateway_stack.open_attempt(id):
        worker = await worker_of(gateway_stack, attempt)
        if attempt.stage == "STAGE_TRAINING" and not trained:
            trained = True
            assert len(worker.assignment.checkpoints) == checkpoints
        assert (await worker.complete()).directive == Directive.DIRECTIVE_RUN
    done = await gateway_stack.job(id)
    assert done.state == JobState.JOB_STATE_SUCCEEDED
    assert done.evaluation_id
    assert done.export_id
    sequences = await gateway_stack.jobs.ListFineTuningJobEvents(
        job_api.ListFineTuningJobEventsRequest(job_id=id, page_size=1000), CONTEXT
    )
    assert [event.sequence for event in sequences.events] == list(range(1, done.last_sequence + 1))


@pytest.mark.parametrize("case", UNENDED)
async def test_migrated_running_job_can_be_cancelled(gateway_stack: MigratedGateway, case: str) -> None:
    request = job_api.CancelFineTuningJobRequest(job_id=CASES[case])
    state = (await gateway_stack.jobs.CancelFineTuningJob(request, CONTEXT)).fine_tuning_job.state
    attempt = await gateway_stack.open_attempt(CASES[case])
    if attempt is None:
        assert state == JobState.JOB_STATE_CANCELLED
        return
    assert (attempt.state, state) == ("CLAIMED", JobState.JOB_STATE_CANCELLING)
    worker = await worker_of(gateway_stack, attempt)
    await worker.report(StageReleased(reason="CANCELLED"))
    assert (await gateway_stack.job(CASES[case])).state == JobState.JOB_STATE_CANCELLED


async def test_migrated_finished_job_can_be_evaluated_exported_and_deleted(gateway_stack: MigratedGateway) -> None:
    """A model trained before the update supports everything that a new one does."""
    id = CASES["succeeded"]
    request_id = "order-succeeded"
    evaluation = (
        await gateway_stack.evaluations.CreateEvaluation(
            evaluation_api.CreateEvaluationRequest(
                model=f"ft:{id}", spec=EvaluationSpec(num_samples=1), request_id=request_id
            ),
            CONTEXT,
        )
    ).evaluation
    worker = await worker_of_result(gateway_stack, evaluation.id, id)
    assert worker.assignment.resolved_spec.evaluation.num_samples == 1
    assert len(worker.assignment.checkpoints) == len(ANSWERS["jobs"][id]["checkpoints"])
    await worker.complete()
    export = (
        await gateway_stack.exports.CreateExport(
            export_api.CreateExportRequest(model=f"ft:{id}", request_id=request_id), CONTEXT
        )
    ).export
    worker = await worker_of_result(gateway_stack, export.id, id)
    assert worker.assignment.metrics
    await worker.complete()
    listed = await gateway_stack.evaluations.ListEvaluations(evaluation_api.ListEvaluationsRequest(job_id=id), CONTEXT)
    assert [(each.state, each.result.tuned_loss) for each in listed.evaluations] == [
        (JobState.JOB_STATE_SUCCEEDED, 3.0),
        (JobState.JOB_STATE_SUCCEEDED, 3.0),
    ]
    for each in CASES.values():
        if ANSWERS["jobs"][each]["fine_tuning_job"]["state"] in ENDED:
            await gateway_stack.jobs.DeleteFineTuningJob(job_api.DeleteFineTuningJobRequest(job_id=each), CONTEXT)
    async with gateway_stack.ledger.database.read() as session:
        left = (await session.exec(select(SavedResult.job_id))).all()
        assert id not in left


async def worker_of_result(gateway_stack: MigratedGateway, work_id: str, job_id: str) -> Worker:
    attempt = gateway_stack.recorder.offered[-1]
    assert attempt.work_id == work_id
    worker = Worker(gateway_stack.requests, "e" * 32)
    claimed = await worker.claim(attempt)
    assert claimed.assignment.fine_tuning_job_id == job_id
    return worker


def normalized_schema(connection: sa.Connection) -> dict[str, Any]:
    """Returns the schema without column order and generated names, for comparison."""
    inspector = sa.inspect(connection)
    tables: dict[str, Any] = {}
    for name in inspector.get_table_names():
        columns = {
            column["name"]: (str(column["type"]), column["nullable"], column["default"])
            for column in inspector.get_columns(name)
        }
        indexes = {
            str(index["name"]): (index["column_names"], bool(index["unique"]), predicate(index))
            for index in inspector.get_indexes(name)
        }
        foreign = {
            (tuple(key["constrained_columns"]), key["referred_table"], tuple(key["referred_columns"]))
            for key in inspector.get_foreign_keys(name)
        }
        unique = {tuple(each["column_names"]) for each in inspector.get_unique_constraints(name)}
        tables[name] = (columns, inspector.get_pk_constraint(name)["constrained_columns"], indexes, foreign, unique)
    return tables


def predicate(index: Any) -> str:
    options = index.get("dialect_options", {})
    return str(options.get("sqlite_where", options.get("postgresql_where", "")))


async def schema(database: Database) -> dict[str, Any]:
    async with database.read() as session:
        return await (await session.connection()).run_sync(normalized_schema)


async def test_migrated_schema_equals_schema_of_new_database(
    database: Database, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A later migration that drops an index must find it in every database."""
    if database.is_sqlite:
        fresh = await Database.open(f"sqlite:///{tmp_path / 'fresh.sqlite'}")
    else:
        fresh = await Database.open(request.getfixturevalue("postgres").url)
    migrated, new = await schema(database), await schema(fresh)
    await fresh.close()
    assert migrated.keys() == new.keys()
    for table in new:
        assert migrated[table] == new[table], table


async def test_migrated_schema_equals_tables_in_code(database: Database) -> None:
    """The gateway's statements are built from its tables."""

    def differences(connection: sa.Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        found = compare_metadata(context, SQLModel.metadata)
        # Version 0002 added these with a default for the rows of its day; every insert gives a value.
        return [each for each in found if [one[2:4] for one in each if one[0] == "modify_default"] not in LEFT_DEFAULTS]

    async with database.read() as session:
        assert await (await session.connection()).run_sync(differences) == []


async def test_second_open_changes_nothing(url: str) -> None:
    def everything(connection: sa.Connection) -> dict[str, list[Any]]:
        metadata = sa.MetaData()
        metadata.reflect(connection)
        return {
            name: sorted(map(repr, connection.execute(sa.select(table)))) for name, table in metadata.tables.items()
        }

    seen = []
    for _ in range(2):
        database = await Database.open(url)
        async with database.read() as session:
            seen.append((await (await session.connection()).run_sync(everything), await schema(database)))
        await database.close()
    assert seen[0] == seen[1]
    assert seen[0][0]["work"]


async def test_gateways_that_start_together_migrate_once(url: str) -> None:
    """An update restarts every gateway at the same moment."""
    program = f"import asyncio; from gateway.sql.database import Database; asyncio.run(Database.open({url!r}))"
    gateways = [await asyncio.create_subprocess_exec(sys.executable, "-c", program) for _ in range(3)]
    assert [await gateway.wait() for gateway in gateways] == [0, 0, 0]
    database = await Database.open(url)
    async with database.read() as session:
        assert len((await session.exec(select(Work.id))).all()) == len(ANSWERS["jobs"]) + 2
    await database.close()


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())


@pytest.mark.parametrize("step", ["create_table", "create_index", "drop_table"])
async def test_failed_migration_leaves_database_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """After a full disk during an update, the earlier version must still work with all jobs."""
    path = tmp_path / "old.sqlite"
    old_database(path)
    before = dump(path)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Operations, step, fail)
        with pytest.raises(OSError, match="No space left"):
            await Database.open(f"sqlite:///{path}")
    assert dump(path) == before
    database = await Database.open(f"sqlite:///{path}")
    async with database.read() as session:
        assert len((await session.exec(select(Work.id))).all()) == len(ANSWERS["jobs"]) + 2
    await database.close()


async def test_dangling_references_stop_a_migration_but_no_later_start(tmp_path: Path) -> None:
    """Such rows are damage that a migration must not copy unnoticed. A start without a migration does not search for
    them: it would read every row."""
    path = tmp_path / "old.sqlite"
    old_database(path)
    with closing(sqlite3.connect(path)) as database, database:
        (job,) = database.execute("SELECT id FROM jobs LIMIT 1").fetchone()
        database.execute("DELETE FROM jobs WHERE id = ?", (job,))
    before = dump(path)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="events"):
            await Database.open(f"sqlite:///{path}")
    assert dump(path) == before
    new = tmp_path / "new.sqlite"
    await (await Database.open(f"sqlite:///{new}")).close()
    with closing(sqlite3.connect(new)) as database, database:
        database.execute("INSERT INTO events VALUES ('ftjob_gone', 1, 'default', 'log', 1, x'')")
    await (await Database.open(f"sqlite:///{new}")).close()


async def test_foreign_keys_are_enforced_after_migration(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    old_database(path)
    await (await Database.open(f"sqlite:///{path}")).close()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_job_with_removed_recipe_is_not_trained_after_migration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without its recipe the job would train with values that its user did not choose."""
    path, id = tmp_path / "old.sqlite", CASES["waiting_preflight"]
    old_database(path)
    with closing(sqlite3.connect(path)) as old, old:
        (data,) = old.execute("SELECT spec FROM jobs WHERE id = ?", (id,)).fetchone()
        spec = FineTuningJobSpec.FromString(data)
        spec.recipe = "gone"
        old.execute("UPDATE jobs SET spec = ? WHERE id = ?", (spec.SerializeToString(), id))
    database = await Database.open(f"sqlite:///{path}")
    async with database.read() as session:
        work = (await session.exec(select(Work).where(Work.id == id))).one()
    await database.close()
    assert FineTuningJobSpec.FromString(work.spec) == spec
    with pytest.raises(VersionMismatch):
        job_configuration(FineTuningJobSpec.FromString(work.merged_spec))
    assert any(id in record.getMessage() and "gone" in record.getMessage() for record in caplog.records)
