"""Callers: API keys, tenants and the audit log."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from finetuneflow.resources.convert import OpenEnum, Resource


class Role(OpenEnum):
    """What a caller may do. Each role may do what the roles before it may."""

    READER = "READER"
    """Reads what its tenant has."""
    MEMBER = "MEMBER"
    """Also uploads, creates, cancels and deletes, and asks for estimates and previews."""
    OPERATOR = "OPERATOR"
    """Also manages tenants, keys and nodes, and reads the audit log."""


@dataclass(frozen=True, kw_only=True)
class ApiKey(Resource):
    """A key of a caller, without its secret."""

    id: str
    """Id of the key."""
    tenant: str
    """The tenant whose resources it reaches."""
    role: Role
    """What it may do."""
    display_name: str
    """Display name, such as the person or program that uses it."""
    created_by: str
    """Id of the key that created it; empty for the first operator's key."""
    create_time: datetime | None
    """Time at which it was created."""
    expire_time: datetime | None
    """Time at which it stops working. None: never."""
    revoke_time: datetime | None
    """Time at which it was revoked. None: it was not."""
    last_use_time: datetime | None
    """Time of its last use, exact to a minute. None: never."""


@dataclass(frozen=True, kw_only=True)
class CreatedKey(Resource):
    """A new key with its secret, which cannot be shown again."""

    key: ApiKey
    """The key as listed."""
    token: str = field(repr=False)
    """The key itself, for FTF_TOKEN or `ftf login`."""


@dataclass(frozen=True, kw_only=True)
class Caller(Resource):
    """Who a client is for its server."""

    tenant: str
    """The caller's tenant."""
    role: Role
    """The caller's role."""
    key: ApiKey | None
    """The caller's key. None for a token of an identity provider and at an insecure server."""
    subject: str
    """Subject of a token of an identity provider; empty otherwise."""


@dataclass(frozen=True, kw_only=True)
class TenantLimits(Resource):
    """What a tenant may have. None: the default of the server."""

    max_live_jobs: int | None
    """Maximum number of jobs, evaluations and exports that have not ended."""
    max_datasets: int | None
    """Maximum number of datasets."""
    max_stored_bytes: int | None
    """Maximum size of all datasets, artifacts and checkpoints, in bytes."""
    max_gpu_seconds_per_day: int | None
    """Maximum GPU time of its trainings in the last 24 hours, in seconds."""


@dataclass(frozen=True, kw_only=True)
class Tenant(Resource):
    """An owner of jobs, datasets and artifacts."""

    name: str
    """Name; it never changes."""
    display_name: str
    """Display name."""
    disabled: bool
    """True if its keys are refused."""
    create_time: datetime | None
    """Time at which it was created."""
    limits: TenantLimits | None
    """Its own limits. None: the defaults of the server."""


@dataclass(frozen=True, kw_only=True)
class AuditEntry(Resource):
    """A call in the audit log."""

    id: str
    """Id; entries sort by it."""
    time: datetime | None
    """Time at which the call ended."""
    tenant: str
    """The caller's tenant."""
    key_id: str
    """Id of the caller's key; empty for a token of an identity provider."""
    subject: str
    """Subject of a token of an identity provider; empty for a key."""
    address: str
    """Network address of the caller."""
    method: str
    """Method, such as `CreateFineTuningJob`."""
    resource: str
    """Id of the resource that the call was about. Empty if a create was refused."""
    request_id: str
    """The request's request_id, if it has one."""
    status: str
    """`OK`, or the name of the gRPC status."""
