"""The decision of an evaluation's gate, and the models that an evaluation compares

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("work") as work:
        work.add_column(sa.Column("comparison", sa.LargeBinary(), nullable=True))
    with op.batch_alter_table("results") as results:
        results.add_column(sa.Column("decision", sa.String(), nullable=False, server_default=sa.text("''")))


def downgrade() -> None:
    with op.batch_alter_table("results") as results:
        results.drop_column("decision")
    with op.batch_alter_table("work") as work:
        work.drop_column("comparison")
