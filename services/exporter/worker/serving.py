"""Programs that can serve the package: for its result, its report and its model card."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engine.config.job import ExportFormat
from engine.serving import UNNAMED_GGUF, UNNAMED_GGUF_ADAPTER, Contents, Served, ollama_name, servable_by
from finetuneflow.v1.stage_result_pb2 import ServableBy
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.forms import Form
from services.exporter.worker.markdown import row
from services.exporter.worker.row_forms import RowForms


def served_by(
    child_input: ExportInput, adapter_config: Mapping[str, Any] | None, forms: Sequence[Form] = ()
) -> list[Served]:
    """Returns what can serve the package of these forms. `adapter_config` is the packed one; None for method full."""
    config, model = child_input.config, child_input.model
    architecture = json.loads((model.path / "config.json").read_text("utf-8"))
    return servable_by(
        Contents(
            config.export.formats,
            adapter_config,
            str(architecture.get("model_type", "")),
            model.id,
            model.revision,
            needs_quantized_base=config.method == "qlora" and config.lora.init_lora_weights == "loftq",
            has_chat_template=RowForms.of(child_input).chat,
            gguf_file=_first_file(forms, "gguf") or UNNAMED_GGUF,
            gguf_adapter_file=_first_file(forms, "gguf_adapter") or UNNAMED_GGUF_ADAPTER,
            of_base=child_input.of_base,
            model_name=ollama_name(child_input.given_name),
        )
    )


def _first_file(forms: Iterable[Form], format_: ExportFormat) -> str:
    """Returns the path of the first GGUF file of a format; empty if there is none."""
    return next((form.gguf.file for form in forms if form.gguf and form.format == format_), "")


def serving_messages(served: Iterable[Served]) -> list[ServableBy]:
    """Returns the same as the result of the export has it."""
    return [
        ServableBy(
            reader=each.reader,
            format=f"EXPORT_FORMAT_{each.format.upper()}" if each.format else None,
            refusal=each.refusal,
            command=each.command,
        )
        for each in served
    ]


def serving_table(served: Sequence[Served]) -> str:
    """Returns a table in Markdown: each reader with its command, or the reason why it cannot serve the package."""
    lines = [row("Reader", "Form", "In the folder of the package"), row("---", "---", "---")]
    for each in served:
        # In a table a vertical bar ends a cell, also in code.
        how = f"No: {each.refusal}" if each.refusal else f"`{each.command}`"
        lines.append(row(each.reader, each.format or "", how.replace("|", "\\|")))
    return "\n".join(lines)
