"""Checks before a training that the job's model can be exported as asked, and served afterwards."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Final

from engine.catalogue import LocalModel
from engine.config.advice import option
from engine.config.conflicts import NOT_IN_GGUF, beyond_plain_lora
from engine.config.start import saved_rank
from engine.errors import JobError, Violation
from engine.estimate.architecture import Architecture
from engine.gguf_conversion import vocabulary_refusal
from engine.gguf_support import AS_GGUF, gguf_adapter_refusal, gguf_refusal
from engine.model_folder import unmergeable_tensor
from engine.plan.resolved import Resolved
from engine.serving import OF_PYTHON, Contents, adapter_settings, servable_by

GGUF_UNSUPPORTED: Final = "GGUF_UNSUPPORTED"


def check_export(resolved: Resolved, model: LocalModel, architecture: Architecture) -> None:
    """Adds the refusals MERGE_UNSUPPORTED and GGUF_UNSUPPORTED, and the warning EXPORT_NOT_SERVABLE."""
    config = resolved.config
    formats = config.export.formats
    if {"merged", "gguf", "gguf_adapter"} & {*formats}:
        _check_merge(resolved, model.path)
    if "gguf" in formats:
        _refuse_gguf(resolved, "gguf", gguf_refusal(model.path))
    if "gguf_adapter" in formats:
        # The settings may be those of the adapter that the training starts from.
        beyond = beyond_plain_lora(config.lora.model_dump())
        found = gguf_adapter_refusal(model.path)
        if beyond:
            # A model that gguf refuses has its advice.
            found = (NOT_IN_GGUF[beyond[0]], found[1] if found else AS_GGUF)
        _refuse_gguf(resolved, "gguf_adapter", found)
    adapter = None
    if config.method != "full":
        # The rank of an adapter below a new one is known to the trainer only.
        adapter = adapter_settings(config.lora, saved_rank(config, 0))
    loftq = config.method == "qlora" and config.lora.init_lora_weights == "loftq"
    readers = servable_by(
        Contents(formats, adapter, architecture.model_type, model.id, model.revision, needs_quantized_base=loftq)
    )
    others = [each for each in readers if each.reader not in OF_PYTHON]
    if all(each.refusal for each in others):
        # A reader may refuse two forms for one reason.
        reasons = "; ".join(dict.fromkeys(f"{each.reader}: {each.refusal}" for each in others))
        loading = dict.fromkeys(each.reader for each in readers if not each.refusal)
        who = f"Only {' and '.join(loading)}" if loading else "Nothing"
        message = f"{who} can load what this job exports ({reasons})."
        wanted = shlex.quote(json.dumps([*formats, "merged"]))
        advice = f"Add merged to export.formats ({option('export.formats', wanted)})."
        if architecture.family == "inl":
            advice = "Nothing else loads INL models; the server itself answers with it, as `ftf generate` asks."
        resolved.warn("EXPORT_NOT_SERVABLE", message, advice, "export.formats")


def check_conversion(resolved: Resolved, model_dir: Path, scratch: Path, on_line: Callable[[], None]) -> None:
    """Adds the refusal GGUF_UNSUPPORTED if llama.cpp's converter does not know the base model's architecture or
    tokenizer. It is run for jobs with such a form only, in `scratch`; `on_line` is called for each line it prints."""
    refused = any(error.reason == GGUF_UNSUPPORTED for error in resolved.refusals)
    wanted = [format_ for format_ in ("gguf", "gguf_adapter") if format_ in resolved.config.export.formats]
    if not wanted or refused:
        return
    _refuse_gguf(resolved, " and ".join(wanted), vocabulary_refusal(model_dir, scratch, on_line))


def _refuse_gguf(resolved: Resolved, format_: str, found: tuple[str, str] | None) -> None:
    if found is None:
        return
    problem, advice = found
    message = f"The model cannot be exported as {format_}: {problem}."
    advice = f"{advice} Leave {format_} out of export.formats."
    where = [Violation("spec.export.formats", message)]
    resolved.refusals.append(JobError(GGUF_UNSUPPORTED, message, advice, where))


def _check_merge(resolved: Resolved, folder: Path) -> None:
    found = unmergeable_tensor(folder)
    if found is not None and resolved.config.method != "full":
        name, dtype = found
        message = f"The base model has {name} in the number format {dtype}, into which no adapter can be merged."
        advice = "Export it as an adapter only, or use a base model in 16 or 32 bits."
        where = [Violation("spec.export.formats", message)]
        resolved.refusals.append(JobError("MERGE_UNSUPPORTED", message, advice, where))
