"""Work of several kinds: jobs, and evaluations and exports asked for alone"""

import sqlalchemy as sa
from alembic import op

from engine.config.job import job_config
from engine.config.spec_proto import config_to_spec, spec_to_dict
from engine.errors import JobError
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    op.drop_index("jobs_by_creation", table_name="jobs")
    op.rename_table("jobs", "work")
    # SQLite's constraint has no name of its own; batch mode, which rebuilds the table, finds it by this convention.
    naming = {"uq": "uq_%(table_name)s_%(column_0_name)s"}
    with op.batch_alter_table("work", naming_convention=naming) as work:
        work.add_column(sa.Column("kind", sa.String(), nullable=False, server_default="fine_tuning_job"))
        work.add_column(sa.Column("job_id", sa.String(), nullable=True))
        work.add_column(sa.Column("merged_spec", sa.LargeBinary(), nullable=False, server_default=sa.text("''")))
        work.drop_constraint("uq_work_tenant" if sqlite else "jobs_tenant_request_id_key", type_="unique")
        work.create_unique_constraint("work_by_request", ["tenant", "kind", "request_id"])
        work.create_foreign_key("work_of_job", "work", ["job_id"], ["id"])
    with op.batch_alter_table("work") as work:
        work.alter_column("kind", server_default=None)
        work.alter_column("merged_spec", server_default=None)
    op.create_index("work_by_creation", "work", ["tenant", "kind", "id"])
    op.create_index("work_by_job", "work", ["job_id"])
    for table in ("attempts", "events", "metrics", "checkpoints", "artifacts"):
        op.execute(f"ALTER TABLE {table} RENAME COLUMN job_id TO work_id")
    op.drop_index("artifacts_by_job", table_name="artifacts")
    op.create_index("artifacts_by_work", "artifacts", ["work_id", "id"])
    _results()
    _merge_recipes()


def _results() -> None:
    op.create_table(
        "results",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("work_id", sa.String(), nullable=False),
        sa.Column("result", sa.LargeBinary(), nullable=True),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["work.id"]),
        sa.ForeignKeyConstraint(["work_id"], ["work.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("results_by_creation", "results", ["tenant", "kind", "id"])
    op.create_index("results_by_job", "results", ["job_id"])
    op.create_index("results_by_work", "results", ["work_id"])
    columns = ["id", "tenant", "kind", "job_id", "work_id", "result", "create_time"]
    for kind in ("evaluation", "export"):
        old = sa.table(f"{kind}s", *map(sa.column, ("id", "tenant", "job_id", "result", "create_time")))
        moved = sa.select(
            old.c.id, old.c.tenant, sa.literal(kind), old.c.job_id, old.c.job_id, old.c.result, old.c.create_time
        )
        op.execute(sa.table("results", *map(sa.column, columns)).insert().from_select(columns, moved))
        op.drop_table(f"{kind}s")


def _merge_recipes() -> None:
    """Recipes are merged at create from here on; earlier jobs get theirs now, because preflight merges no more."""
    work = sa.table(
        "work", sa.column("id", sa.String()), *(sa.column(n, sa.LargeBinary()) for n in ("spec", "merged_spec"))
    )
    connection = op.get_bind()
    for id_, spec in connection.execute(sa.select(work.c.id, work.c.spec)).all():
        message = FineTuningJobSpec.FromString(spec)
        try:
            merged = config_to_spec(job_config(spec_to_dict(message)))
        except JobError:
            # An earlier version accepted it. If the job has not passed preflight, it ends there with VERSION_MISMATCH.
            merged = message
        connection.execute(sa.update(work).where(work.c.id == id_).values(merged_spec=merged.SerializeToString()))
