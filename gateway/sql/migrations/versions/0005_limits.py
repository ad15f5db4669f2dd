"""Limits of tenants, priorities, and the indexes that count and order work by them"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_LIMITS = ("max_live_jobs", "max_datasets", "max_stored_bytes", "max_gpu_seconds_per_day")
_NUMBERS = (("work", "priority"), ("attempts", "rank"), ("attempts", "gpus"))


def upgrade() -> None:
    for name in _LIMITS:
        op.add_column("tenants", sa.Column(name, sa.BigInteger(), nullable=True))
    for table, name in _NUMBERS:
        op.add_column(table, sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
    # The queues of the other stages have one pool each.
    op.execute("UPDATE attempts SET pool = 'default' WHERE stage != 'STAGE_TRAINING' AND pool != 'default'")
    live = sa.text("end_time IS NULL")
    op.create_index("work_live", "work", ["tenant"], sqlite_where=live, postgresql_where=live)
    on_gpus = sa.text("gpus > 0")
    op.create_index(
        "attempts_on_gpus", "attempts", ["tenant", "end_time"], sqlite_where=on_gpus, postgresql_where=on_gpus
    )
    op.create_index("attempts_by_queue", "attempts", ["state", "stage", "pool", "tenant", "rank", "work_id"])
    op.create_index("attempts_by_claim", "attempts", ["tenant", "stage", "claim_time"])
    op.drop_index("attempts_by_state", "attempts")
    op.create_index("checkpoints_by_tenant", "checkpoints", ["tenant", "pruned", "size_bytes"])
    op.create_index("artifacts_by_tenant", "artifacts", ["tenant", "size_bytes"])


def downgrade() -> None:
    op.drop_index("artifacts_by_tenant", "artifacts")
    op.drop_index("checkpoints_by_tenant", "checkpoints")
    op.create_index("attempts_by_state", "attempts", ["state"])
    op.drop_index("attempts_by_claim", "attempts")
    op.drop_index("attempts_by_queue", "attempts")
    op.drop_index("attempts_on_gpus", "attempts")
    op.drop_index("work_live", "work")
    for table, name in reversed(_NUMBERS):
        op.drop_column(table, name)
    for name in reversed(_LIMITS):
        op.drop_column("tenants", name)
