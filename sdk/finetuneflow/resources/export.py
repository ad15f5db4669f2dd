"""Packages made from finished models."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetuneflow.resources.convert import OpenEnum, Resource
from finetuneflow.resources.stage_result import ExportResult


class ExportFormat(OpenEnum):
    """A form of the finished model."""

    ADAPTER = "ADAPTER"
    MERGED = "MERGED"
    GGUF = "GGUF"


@dataclass(frozen=True, kw_only=True)
class Export(Resource):
    """A package; `artifacts.list(export.job_id)` has its files."""

    id: str
    job_id: str
    formats: tuple[ExportFormat, ...]
    result: ExportResult | None
    create_time: datetime | None
