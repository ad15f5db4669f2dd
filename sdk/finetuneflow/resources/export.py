"""Packages made from tuned models and base models."""

from __future__ import annotations

from dataclasses import dataclass

from finetuneflow.resources.stage_result import ExportFormat, ExportResult
from finetuneflow.resources.work import ModelWork


@dataclass(frozen=True, kw_only=True)
class Export(ModelWork):
    """A package made from a tuned model or a base model; `artifacts.list(export.id)` lists its files."""

    formats: tuple[ExportFormat, ...]
    """Formats of the package."""
    result: ExportResult | None
    """The package: path, SHA-256, size and the forms in it. None until it has SUCCEEDED."""
