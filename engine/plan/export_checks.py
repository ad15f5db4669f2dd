"""Checks before a training that the job's model can be exported as asked, and served afterwards."""

import json
import shlex
from pathlib import Path

from engine.catalogue import LocalModel
from engine.config.advice import option
from engine.config.start import saved_rank
from engine.errors import JobError, Violation
from engine.estimate.architecture import Architecture
from engine.gguf_support import gguf_refusal
from engine.model_folder import unmergeable_tensor
from engine.plan.resolved import Resolved
from engine.serving import OF_PYTHON, Contents, adapter_settings, servable_by


def check_export(resolved: Resolved, model: LocalModel, architecture: Architecture) -> None:
    """Adds the refusals MERGE_UNSUPPORTED and GGUF_UNSUPPORTED, and the warning EXPORT_NOT_SERVABLE."""
    config = resolved.config
    formats = config.export.formats
    if {"merged", "gguf"} & {*formats}:
        _check_merge(resolved, model.path)
    if "gguf" in formats and (found := gguf_refusal(model.path)):
        message = f"The model cannot be exported as gguf: {found[0]}."
        refusal = JobError("GGUF_UNSUPPORTED", message, found[1], [Violation("spec.export.formats", message)])
        resolved.refusals.append(refusal)
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
        reasons = "; ".join(f"{each.reader}: {each.refusal}" for each in others)
        message = f"Only {' and '.join(OF_PYTHON)} can load what this job exports ({reasons})."
        wanted = shlex.quote(json.dumps([*formats, "merged"]))
        advice = f"Add merged to export.formats ({option('export.formats', wanted)})."
        if architecture.family == "inl":
            advice = "Nothing else loads INL models; the server itself answers with it, as `ftf generate` asks."
        resolved.warn("EXPORT_NOT_SERVABLE", message, advice, "export.formats")


def _check_merge(resolved: Resolved, folder: Path) -> None:
    found = unmergeable_tensor(folder)
    if found is not None and resolved.config.method != "full":
        name, dtype = found
        message = f"The base model has {name} in the number format {dtype}, into which no adapter can be merged."
        advice = "Export it as an adapter only, or use a base model in 16 or 32 bits."
        where = [Violation("spec.export.formats", message)]
        resolved.refusals.append(JobError("MERGE_UNSUPPORTED", message, advice, where))
