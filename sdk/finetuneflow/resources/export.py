"""Packages made from finished models."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetuneflow.resources.convert import OpenEnum, Resource
from finetuneflow.resources.stage_result import ExportResult


class ExportFormat(OpenEnum):
    """A format of the exported model."""

    ADAPTER = "ADAPTER"
    """One zip with the adapter (for method FULL: the weights) as safetensors, the tokenizer, metrics and report."""
    MERGED = "MERGED"
    """The adapter merged into the base weights. Not available yet: INVALID_ARGUMENT."""
    GGUF = "GGUF"
    """A GGUF file with an Ollama Modelfile. Not available yet: INVALID_ARGUMENT."""


@dataclass(frozen=True, kw_only=True)
class Export(Resource):
    """A package made from a finished model; `artifacts.list(export.job_id)` lists its files."""

    id: str
    """`ex_` and 26 characters."""
    job_id: str
    """The job whose model was packed."""
    formats: tuple[ExportFormat, ...]
    """Formats of the package."""
    result: ExportResult | None
    """The package: path, SHA-256 and size."""
    create_time: datetime | None
    """Time at which the gateway accepted the export."""
