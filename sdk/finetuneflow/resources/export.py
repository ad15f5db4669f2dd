"""Packages made from finished models."""

from __future__ import annotations

from dataclasses import dataclass

from finetuneflow.resources.convert import OpenEnum
from finetuneflow.resources.stage_result import ExportResult
from finetuneflow.resources.work import ModelWork


class ExportFormat(OpenEnum):
    """A format of the exported model."""

    ADAPTER = "ADAPTER"
    """One zip with the adapter (for method FULL: the weights) as safetensors, the tokenizer, metrics and report."""
    MERGED = "MERGED"
    """The adapter merged into the base weights. Not available yet: UNIMPLEMENTED."""
    GGUF = "GGUF"
    """A GGUF file with an Ollama Modelfile. Not available yet: UNIMPLEMENTED."""


@dataclass(frozen=True, kw_only=True)
class Export(ModelWork):
    """A package made from a tuned model; `artifacts.list(export.id)` lists its files."""

    formats: tuple[ExportFormat, ...]
    """Formats of the package."""
    result: ExportResult | None
    """The package: path, SHA-256 and size. None until it has SUCCEEDED."""
