"""Uploaded files of rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetuneflow.resources.convert import Resource


@dataclass(frozen=True, kw_only=True)
class Dataset(Resource):
    """An uploaded file of rows. Immutable."""

    id: str
    display_name: str
    filename: str
    size_bytes: int
    sha256: str
    create_time: datetime | None
