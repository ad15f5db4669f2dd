"""Secrets, without their values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetuneflow.resources.convert import Resource


@dataclass(frozen=True, kw_only=True)
class Secret(Resource):
    """A secret of a tenant, such as a token of the model hub. Its value is written and never returned."""

    name: str
    """Name: 1 to 63 characters of a-z, 0-9, `_` and `-`, starting with a letter. Unique in the tenant."""
    create_time: datetime | None
    """When it was first set."""
    update_time: datetime | None
    """When its value was last set."""
    last_use_time: datetime | None
    """When it was last given to a worker, for a job that names it. None: never."""
