"""The tables: work, attempts, events and what is projected from them. Only the gateway touches these.

Times are microseconds since 1970 (UTC) as integers: SQLite has no time zones. They inform; no rule compares them,
except that an attempt is not offered to workers before `not_before`, and that the GPU time of a day and the order among
tenants are counted with them.
Messages that are only ever read whole (specs, results) are stored in their wire form.
"""

import time

from sqlalchemy import JSON, BigInteger, Column, Index, LargeBinary, UniqueConstraint, false, text
from sqlmodel import Field, SQLModel


def now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def _big(**kwargs: object) -> Column[int]:
    return Column(BigInteger, nullable=False, **kwargs)  # type: ignore[arg-type]


class Work(SQLModel, table=True):
    """A fine-tuning job, or an evaluation or export asked for alone. Locked first by every decision about it."""

    __tablename__ = "work"
    __table_args__ = (
        UniqueConstraint("tenant", "kind", "request_id", name="work_by_request"),
        Index("work_by_creation", "tenant", "kind", "id"),
        Index("work_by_job", "job_id"),
        Index("work_by_start", "start_job_id"),
        Index(
            "work_live",
            "tenant",
            sqlite_where=text("end_time IS NULL"),
            postgresql_where=text("end_time IS NULL"),
        ),
    )

    id: str = Field(primary_key=True)
    tenant: str
    kind: str
    """A name in `gateway.work.kinds`."""
    job_id: str | None = Field(default=None, foreign_key="work.id")
    """The fine-tuning job whose model this evaluates or exports. None for a job, and for an evaluation of a base model
    alone."""
    start_job_id: str | None = None
    """The fine-tuning job whose adapter this job's training starts from, or whose model this evaluation compares with;
    it may be deleted after that."""
    deleting: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    """Set while its history is deleted: nothing new may be made of its model."""
    start: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    """TrainingStart: that adapter and those that it builds upon."""
    comparison: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    """Comparison: the models of an evaluation asked for alone. None if an earlier version created it."""
    request_id: str | None = None
    request_sha256: str
    spec: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """The spec that the caller sent: FineTuningJobSpec, EvaluationSpec or ExportSpec."""
    merged_spec: bytes = Field(default=b"", sa_column=Column(LargeBinary, nullable=False))
    """A fine-tuning job's FineTuningJobSpec with its recipe under it; empty for other kinds."""
    labels: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    pool: str
    priority: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    max_attempts: int
    state: str
    stage: str
    reason: str = ""
    message: str = ""
    fault: str = "FAULT_UNSPECIFIED"
    advice: str = ""
    attempt: int = 0
    failed_attempts: int = 0
    last_sequence: int = Field(default=0, sa_column=_big())
    config: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    """ConfigResolved: what it runs with."""
    progress: bytes = Field(default=b"", sa_column=Column(LargeBinary, nullable=False))
    preflight: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    training: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    create_time: int = Field(sa_column=_big())
    update_time: int = Field(sa_column=_big())
    end_time: int | None = Field(default=None, sa_column=Column(BigInteger))


class Attempt(SQLModel, table=True):
    """One try at one stage. READY is the dispatch itself; at most one attempt of a work is not ENDED."""

    __tablename__ = "attempts"
    __table_args__ = (
        Index(
            "attempts_open",
            "work_id",
            unique=True,
            sqlite_where=text("state != 'ENDED'"),
            postgresql_where=text("state != 'ENDED'"),
        ),
        Index("attempts_by_queue", "state", "stage", "pool", "tenant", "rank", "work_id"),
        Index("attempts_by_claim", "tenant", "stage", "claim_time"),
        Index(
            "attempts_on_gpus",
            "tenant",
            "end_time",
            sqlite_where=text("gpus > 0"),
            postgresql_where=text("gpus > 0"),
        ),
    )

    work_id: str = Field(primary_key=True, foreign_key="work.id")
    stage: str = Field(primary_key=True)
    attempt: int = Field(primary_key=True)
    tenant: str
    pool: str
    """The pool of its queue."""
    rank: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    """The work's priority, negated: the attempts of a tenant are claimed in ascending order, as an index has them."""
    gpus: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    """Number of GPUs that a claimed training uses."""
    state: str = "READY"
    not_before: int = Field(default=0, sa_column=_big())
    claim_id: str | None = None
    node_id: str = ""
    beat: int = Field(default=0, sa_column=_big())
    next_ordinal: int = Field(default=0, sa_column=_big())
    outcome: str = ""
    reason: str = ""
    message: str = ""
    counted: bool = False
    create_time: int = Field(sa_column=_big())
    claim_time: int | None = Field(default=None, sa_column=Column(BigInteger))
    end_time: int | None = Field(default=None, sa_column=Column(BigInteger))


class WorkEvent(SQLModel, table=True):
    """An accepted event. `event` is its wire form, sequence included."""

    __tablename__ = "events"

    work_id: str = Field(primary_key=True, foreign_key="work.id")
    sequence: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    tenant: str
    kind: str
    severity: int
    event: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class Metric(SQLModel, table=True):
    """One point of a curve. When a later attempt trains a step again, the older point is deleted."""

    __tablename__ = "metrics"
    __table_args__ = (Index("metrics_by_step", "work_id", "step"),)

    work_id: str = Field(primary_key=True, foreign_key="work.id")
    name: str = Field(primary_key=True)
    sequence: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    tenant: str
    attempt: int
    step: int = Field(sa_column=_big())
    epoch: float
    value: float | None
    """None is NaN, which SQLite can't store."""


class SavedCheckpoint(SQLModel, table=True):
    """An accepted checkpoint."""

    __tablename__ = "checkpoints"
    __table_args__ = (Index("checkpoints_by_tenant", "tenant", "pruned", "size_bytes"),)

    work_id: str = Field(primary_key=True, foreign_key="work.id")
    path: str = Field(primary_key=True)
    tenant: str
    step: int = Field(sa_column=_big())
    attempt: int
    epoch: float
    manifest_sha256: str
    size_bytes: int = Field(sa_column=_big())
    eval_loss: float | None = None
    best: bool = False
    sequence: int = Field(sa_column=_big())
    pruned: bool = False
    create_time: int = Field(sa_column=_big())


class SavedArtifact(SQLModel, table=True):
    """An accepted file or folder in the artifact store."""

    __tablename__ = "artifacts"
    __table_args__ = (
        Index("artifacts_by_work", "work_id", "id"),
        Index("artifacts_by_tenant", "tenant", "size_bytes"),
    )

    id: str = Field(primary_key=True)
    tenant: str
    work_id: str = Field(foreign_key="work.id")
    name: str
    kind: str
    path: str
    sha256: str
    size_bytes: int = Field(sa_column=_big())
    media_type: str
    create_time: int = Field(sa_column=_big())


class UploadedDataset(SQLModel, table=True):
    """A complete, verified upload."""

    __tablename__ = "datasets"
    __table_args__ = (
        UniqueConstraint("tenant", "request_id"),
        Index("datasets_by_creation", "tenant", "id"),
    )

    id: str = Field(primary_key=True)
    tenant: str
    request_id: str | None = None
    display_name: str
    filename: str
    size_bytes: int = Field(sa_column=_big())
    sha256: str
    path: str
    create_time: int = Field(sa_column=_big())


class SavedResult(SQLModel, table=True):
    """An evaluation or export of a job's model, left by the job's own stage or asked for alone."""

    __tablename__ = "results"
    __table_args__ = (
        Index("results_by_creation", "tenant", "kind", "id"),
        Index("results_by_job", "job_id"),
        Index("results_by_work", "work_id"),
    )

    id: str = Field(primary_key=True)
    """The work's id where the work is this result alone."""
    tenant: str
    kind: str
    """`evaluation` or `export`."""
    job_id: str = Field(foreign_key="work.id")
    """The fine-tuning job whose model it is about; its own id for an evaluation of a base model alone."""
    work_id: str = Field(foreign_key="work.id")
    """The work that makes it: the job itself, or an evaluation or export asked for alone."""
    result: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    """EvaluationResult or ExportResult. None until the work has SUCCEEDED."""
    decision: str = Field(default="", sa_column_kwargs={"server_default": text("''")})
    """Name of the GateDecision of an evaluation; empty if there is none."""
    shown_regression: str = Field(default="", sa_column_kwargs={"server_default": text("''")})
    """EvaluationResult.shown_regression, for lists."""
    create_time: int = Field(sa_column=_big())


class Delivery(SQLModel, table=True):
    """An integration of a job: a service that gets its events, and how far it has got them."""

    __tablename__ = "deliveries"
    __table_args__ = (
        UniqueConstraint("work_id", "request_id", name="deliveries_by_request"),
        Index("deliveries_by_work", "work_id", "id"),
        Index(
            "deliveries_unended",
            "id",
            sqlite_where=text("end_time IS NULL"),
            postgresql_where=text("end_time IS NULL"),
        ),
    )

    id: str = Field(primary_key=True)
    tenant: str
    work_id: str = Field(foreign_key="work.id")
    request_id: str | None = None
    spec: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """IntegrationSpec."""
    state: str = "INTEGRATION_STATE_ACTIVE"
    """ACTIVE, RETRYING, DONE or FAILED."""
    holder: str = ""
    """The deliverer that has taken it. It is free if no such deliverer exists."""
    sequence: int = Field(default=0, sa_column=_big())
    """The last event that was delivered, or that the integration does not select."""
    attempts: int = Field(default=0, sa_column=_big())
    """Number of the last row in `delivery_attempts`."""
    failures: int = Field(default=0, sa_column=_big())
    """Failures in a row."""
    error: str = ""
    run_name: str = ""
    run_url: str = ""
    create_time: int = Field(sa_column=_big())
    update_time: int = Field(sa_column=_big())
    end_time: int | None = Field(default=None, sa_column=Column(BigInteger))


class DeliveryAttemptRow(SQLModel, table=True):
    """One try to deliver. The latest ones of a delivery are kept."""

    __tablename__ = "delivery_attempts"

    delivery_id: str = Field(primary_key=True, foreign_key="deliveries.id", ondelete="CASCADE")
    number: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    first_sequence: int = Field(default=0, sa_column=_big())
    last_sequence: int = Field(default=0, sa_column=_big())
    time: int = Field(sa_column=_big())
    duration_seconds: float
    http_status: int = 0
    error: str = ""


class Deliverer(SQLModel, table=True):
    """A running delivery process. Others delete the row when its beat stops, and so free what it has taken."""

    __tablename__ = "deliverers"

    id: str = Field(primary_key=True)
    beat: int = Field(default=0, sa_column=_big())


class GatewayTick(SQLModel, table=True):
    """One row, written by every lease watch: a lease may only expire while SQL takes writes."""

    __tablename__ = "gateway_ticks"

    id: int = Field(primary_key=True)
    tick: int = Field(sa_column=_big())


class TenantRow(SQLModel, table=True):
    """An owner of jobs, datasets and artifacts."""

    __tablename__ = "tenants"

    name: str = Field(primary_key=True)
    display_name: str = ""
    disabled: bool = False
    create_time: int = Field(sa_column=_big())
    max_live_jobs: int | None = Field(default=None, sa_column=Column(BigInteger))
    """None, as for the other limits: the gateway's default."""
    max_datasets: int | None = Field(default=None, sa_column=Column(BigInteger))
    max_stored_bytes: int | None = Field(default=None, sa_column=Column(BigInteger))
    max_gpu_seconds_per_day: int | None = Field(default=None, sa_column=Column(BigInteger))


class ApiKeyRow(SQLModel, table=True):
    """A caller's key, without its secret."""

    __tablename__ = "api_keys"
    __table_args__ = (Index("api_keys_by_tenant", "tenant", "id"), Index("api_keys_by_root", "root_id"))

    id: str = Field(primary_key=True)
    tenant: str = Field(foreign_key="tenants.name")
    role: int
    display_name: str = ""
    secret_sha256: str
    """Enough for a secret of 256 random bits: there is nothing to guess that a slow hash would protect."""
    created_by: str = ""
    root_id: str
    """The key whose revocation ends this one: itself, unless a key that is not an operator's has created it."""
    create_time: int = Field(sa_column=_big())
    expire_time: int | None = Field(default=None, sa_column=Column(BigInteger))
    revoke_time: int | None = Field(default=None, sa_column=Column(BigInteger))
    last_use_time: int | None = Field(default=None, sa_column=Column(BigInteger))


class SecretRow(SQLModel, table=True):
    """A secret of a tenant. Its value is encrypted with keys that are not in the database."""

    __tablename__ = "secrets"

    tenant: str = Field(primary_key=True, foreign_key="tenants.name")
    name: str = Field(primary_key=True)
    ciphertext: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    create_time: int = Field(sa_column=_big())
    update_time: int = Field(sa_column=_big())
    last_use_time: int | None = Field(default=None, sa_column=Column(BigInteger))


class AuditRow(SQLModel, table=True):
    """A call that was written to the audit log. The database itself refuses to change or delete one."""

    __tablename__ = "audit"
    __table_args__ = (Index("audit_by_resource", "resource", "id"), Index("audit_by_key", "key_id", "id"))

    id: str = Field(primary_key=True)
    time: int = Field(sa_column=_big())
    tenant: str
    key_id: str
    subject: str
    address: str
    method: str
    resource: str
    request_id: str
    status: str
