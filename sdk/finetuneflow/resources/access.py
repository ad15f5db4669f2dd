"""API keys, callers, tenants, and entries of the audit log."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Self

from finetuneflow.resources.convert import OpenEnum, Resource


class Role(OpenEnum):
    """Role of a caller. Each role includes the permissions of the roles before it."""

    READER = "READER"
    """Reads what its tenant has: jobs, events, metrics, datasets, artifacts."""
    MEMBER = "MEMBER"
    """Also uploads, creates, cancels and deletes, and asks for estimates and previews."""
    OPERATOR = "OPERATOR"
    """Also manages the tenants, keys and nodes of the whole system, and reads its audit log. It does not see the jobs
    and data of other tenants."""


@dataclass(frozen=True, kw_only=True)
class ApiKey(Resource):
    """A key of a caller, without its secret, which the server does not keep."""

    id: str
    """Id: 16 characters of lower-case base 32. The key itself is `ftf_<id>_<secret>`."""
    tenant: str
    """The tenant whose resources the key reaches."""
    role: Role
    """Role of the key, which limits the methods that it may call."""
    display_name: str
    """Display name, such as the person or program that uses the key."""
    created_by: str
    """Id of the key that created it; empty for the first operator key. If it was created by a key that is not an
    operator's, it ends with that key."""
    create_time: datetime | None
    """When it was created."""
    expire_time: datetime | None
    """When it stops working. None: never."""
    revoke_time: datetime | None
    """When it was revoked. None: it was not."""
    last_use_time: datetime | None
    """When it was last used, exact to one minute. None: never."""


@dataclass(frozen=True, kw_only=True)
class CreatedKey(ApiKey):
    """A key that was just created, with its secret. The `repr` does not show the secret; `proto` contains it."""

    token: str = field(repr=False)
    """The key itself, `ftf_<id>_<secret>`. This is its only copy: the server keeps its SHA-256."""

    @classmethod
    def from_proto(cls, message: Any) -> Self:
        """Reads the key from a CreateKeyResponse."""
        key = ApiKey.from_proto(message.key)
        values = {each.name: getattr(key, each.name) for each in fields(key)}
        return cls(**{**values, "proto": message}, token=message.token)


@dataclass(frozen=True, kw_only=True)
class Caller(Resource):
    """The caller as the server sees it."""

    tenant: str
    """The caller's tenant."""
    role: Role
    """The caller's role."""
    key: ApiKey | None
    """The caller's key. None for a token of an identity provider, and on a server that asks for no keys."""
    subject: str
    """The subject of a token of an identity provider; empty for a key."""


@dataclass(frozen=True, kw_only=True)
class TenantLimits(Resource):
    """Limits of a tenant. None: the default of the server."""

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
    """The owner of jobs, datasets and artifacts. Nothing of one tenant is visible to another."""

    name: str
    """Name: 1 to 40 characters of a-z, 0-9 and `-`, starting with a letter. It never changes."""
    display_name: str
    """Display name."""
    disabled: bool
    """True if its keys are refused. Its jobs keep running."""
    create_time: datetime | None
    """When it was created."""
    limits: TenantLimits | None
    """Its own limits. None: the defaults of the server."""


@dataclass(frozen=True, kw_only=True)
class AuditEntry(Resource):
    """One call, written when it has ended and before its caller is answered."""

    id: str
    """Id; entries sort by it."""
    time: datetime | None
    """When the call ended."""
    tenant: str
    """The caller's tenant."""
    key_id: str
    """Id of the caller's key; empty for a token of an identity provider."""
    subject: str
    """Subject of a token of an identity provider; empty for a key."""
    address: str
    """Network address of the caller, without the port."""
    method: str
    """Method, such as `CreateFineTuningJob`."""
    resource: str
    """Id of the resource that the call was about. Empty if a create was refused."""
    request_id: str
    """The request's request_id, if it has one."""
    status: str
    """OK, or the name of the gRPC status, such as NOT_FOUND."""
