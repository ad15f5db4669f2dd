"""The gguf_adapter form: the adapter alone in GGUF, which llama.cpp and Ollama load beside a GGUF file of the base
model."""

import collections
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from gguf import GGUFReader
from safetensors import safe_open

from engine.config.conflicts import NOT_IN_GGUF
from engine.errors import JobError
from engine.gguf_conversion import converter
from engine.gguf_support import AS_GGUF, gguf_adapter_refusal
from engine.serving import BASE_GGUF, GGUF_ADAPTER_FOLDER, MODELFILE
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.forms import Form, GgufFile
from services.exporter.worker.gguf_files import convert, file_name, model_card_of_base, run_script
from services.exporter.worker.modelfile import modelfile
from services.exporter.worker.package import adapter_config
from services.exporter.worker.row_forms import RowForms

WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"
_SCRIPT: Final = "convert_lora_to_gguf.py"
_MATRICES: Final = (".lora_A.weight", ".lora_B.weight")
_REFUSED: Final = {
    "use_dora": NOT_IN_GGUF["use_dora"],
    "modules_to_save": NOT_IN_GGUF["modules_to_save"],
    "trainable_token_indices": NOT_IN_GGUF["trainable_tokens"],
    "lora_bias": NOT_IN_GGUF["bias"],
    "rank_pattern": "its layers have different ranks, and the file states one alpha for all",
    "alpha_pattern": "its layers have different scales, and the file states one alpha for all",
    "fan_in_fan_out": "llama.cpp's converter makes wrong adapters of transposed layers",
    "layer_replication": "llama.cpp does not repeat layers",
}
"""Keys of adapter_config.json whose value must be empty, and why."""


def check_gguf_adapter(child_input: ExportInput) -> None:
    """Raises JobError("GGUF_UNSUPPORTED") for an adapter that llama.cpp cannot load, or would compute otherwise,
    SystemFailure if the converter is not installed."""
    converter(_SCRIPT)
    if found := gguf_adapter_refusal(child_input.model.path):
        raise unsupported(*found)
    config = json.loads((child_input.adapter_dir / CONFIG).read_text("utf-8"))
    reason = next((why for key, why in _REFUSED.items() if config.get(key)), None)
    if config.get("bias") not in (None, "none"):
        reason = NOT_IN_GGUF["bias"]
    if reason is None:
        with safe_open(child_input.adapter_dir / WEIGHTS, "pt") as tensors:
            other = next((name for name in tensors.keys() if not name.endswith(_MATRICES)), None)  # noqa: SIM118
        reason = other and f"llama.cpp's adapters have no place for its tensor {other}"
    if reason:
        raise unsupported(reason, AS_GGUF)


def unsupported(problem: str, advice: str) -> JobError:
    """Returns the failure of an adapter that cannot be exported."""
    return JobError("GGUF_UNSUPPORTED", f"The adapter cannot be exported as gguf_adapter: {problem}.", advice)


def stated_alpha(config: Mapping[str, Any]) -> float:
    """Returns the alpha to state for an adapter with this adapter_config.json: llama.cpp divides it by the rank, where
    rsLoRA divides by the root of the rank."""
    alpha = float(config["lora_alpha"])
    return alpha * math.sqrt(config["r"]) if config.get("use_rslora") else alpha


def write_adapter_source(child_input: ExportInput, folder: Path, on_line: Callable[[], None]) -> None:
    """Writes what the files are made of and compared with: the adapter as the converter reads it, and the base model as
    a GGUF file in float32. `on_line` is called for each line that the converter prints."""
    folder.mkdir()
    (folder / WEIGHTS).symlink_to(child_input.adapter_dir / WEIGHTS)
    config = adapter_config(child_input)
    assert config is not None  # noqa: S101 - method full was refused
    # The converter would copy alpha as it is.
    config.update(lora_alpha=stated_alpha(config), use_rslora=False)
    (folder / CONFIG).write_text(json.dumps(config), "utf-8")
    (folder / "README.md").write_text(model_card_of_base(child_input, child_input.config.display_name), "utf-8")
    convert(child_input, child_input.model.path, folder / BASE_GGUF, "f32", on_line)


def write_gguf_adapter(
    child_input: ExportInput,
    package: Path,
    source: Path,
    on_line: Callable[[], None],
    on_file: Callable[[str], None],
) -> list[Form]:
    """Writes the files to the folder `gguf_adapter` of the package, and a Modelfile if rows were conversations.

    `source` has the adapter (`write_adapter_source`). `on_file` is called with the name of each file
    before it is made. Raises JobError("GGUF_UNSUPPORTED").
    """
    folder = package / GGUF_ADAPTER_FOLDER
    folder.mkdir()
    names = {
        type_: f"{file_name(child_input)}-lora-{type_}.gguf" for type_ in child_input.config.export.adapter_gguf_types
    }
    made = None
    if RowForms.of(child_input).chat:
        made = modelfile(child_input, list(names.values()), BASE_GGUF)
        (folder / MODELFILE).write_text(made.text, "utf-8")
    forms = []
    for type_, name in names.items():
        file = folder / name
        on_file(name)
        arguments = [str(source), "--base", str(child_input.model.path), "--outfile", str(file), "--outtype", type_]
        run_script(converter(_SCRIPT), arguments, on_line)
        counts = collections.Counter(tensor.tensor_type.name for tensor in GGUFReader(file).tensors)
        about = GgufFile(
            file=f"{GGUF_ADAPTER_FOLDER}/{name}",
            type=type_,
            tensor_types=dict(sorted(counts.items())),
            modelfile=f"{GGUF_ADAPTER_FOLDER}/{MODELFILE}" if made else "",
            modelfile_gaps=made.gaps if made else (),
        )
        # A GGUF file of the base model has the weights of its files.
        merge_base = "original" if child_input.config.method == "qlora" else ""
        form = Form("gguf_adapter", GGUF_ADAPTER_FOLDER, file.stat().st_size, type_, merge_base=merge_base, gguf=about)
        forms.append(form)
    return forms
