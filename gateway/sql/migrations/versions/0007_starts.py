"""Trainings that start from the adapter of another job"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("work") as work:
        work.add_column(sa.Column("start_job_id", sa.String(), nullable=True))
        work.add_column(sa.Column("start", sa.LargeBinary(), nullable=True))
        work.add_column(sa.Column("deleting", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index("work_by_start", "work", ["start_job_id"])


def downgrade() -> None:
    op.drop_index("work_by_start", "work")
    with op.batch_alter_table("work") as work:
        work.drop_column("deleting")
        work.drop_column("start")
        work.drop_column("start_job_id")
