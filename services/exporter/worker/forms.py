"""Forms of the model that a package contains."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open

from engine.config.job import ExportFormat
from engine.serving import GGUF_FOLDER as GGUF_FOLDER
from engine.serving import MERGED_FOLDER as MERGED_FOLDER
from services.exporter.worker.markdown import escape

_DTYPES: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file of a package."""

    file: str
    """Its path in the package."""
    type: str
    """The type that was asked for, such as `q8_0`."""
    tensor_types: dict[str, int]
    """Number of tensors of each type in the file."""
    modelfile: str
    """Path of the Modelfile in the package; empty if the rows were no conversations."""
    modelfile_gaps: tuple[str, ...]
    """Lines that the Modelfile lacks, each with the reason: `TEMPLATE: …`."""


@dataclass(frozen=True)
class Form:
    """One form of the model in a package."""

    format: ExportFormat
    path: str
    """Its folder in the package; empty for the top folder."""
    size_bytes: int
    """Size of its weights."""
    dtype: str
    """Number format of most of its weights."""
    merge_base: str = ""
    """For the merged, gguf and gguf_adapter forms of method qlora: `trained` or `original`."""
    gguf: GgufFile | None = None
    """For the gguf and gguf_adapter forms, of which each file is one."""

    @property
    def name(self) -> str:
        """The format, with the type of a GGUF file: `gguf q8_0`."""
        return f"{self.format} {self.gguf.type}" if self.gguf else self.format

    @property
    def title(self) -> str:
        """The format as a heading."""
        titles = {"gguf": "GGUF", "gguf_adapter": "GGUF adapter"}
        return titles.get(self.format, self.format.capitalize())

    def plain(self) -> dict[str, Any]:
        """Returns the form as a table."""
        return asdict(self)


def form_of(format_: ExportFormat, package: Path, folder: str, weights: Iterable[Path], merge_base: str = "") -> Form:
    """Describes weights that were written to `folder` of a package."""
    files = list(weights)
    return Form(format_, folder, sum(file.stat().st_size for file in files), dtype_of(files), merge_base)


def dtype_of(files: Iterable[Path]) -> str:
    """Returns the number format of most of the floating-point numbers in safetensors files, such as `bfloat16`."""
    counts: dict[str, int] = {}
    for file in files:
        with safe_open(file, "numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                own = tensors.get_slice(name)
                dtype = _DTYPES.get(own.get_dtype())
                if dtype:
                    size = 1
                    for length in own.get_shape():
                        size *= length
                    counts[dtype] = counts.get(dtype, 0) + size
    return max(counts, key=lambda dtype: counts[dtype], default="float32")


def describe(form: Form) -> str:
    """Returns what the form is, as a sentence in Markdown."""
    if form.format == "adapter":
        return f"The weights of the training in the top folder, {form.dtype}."
    where = f"`{form.path}/`, {form.dtype}"
    if form.gguf:
        counts = ", ".join(f"{count} {type_}" for type_, count in form.gguf.tensor_types.items())
        where = f"`{form.gguf.file}` for llama.cpp and Ollama, {form.gguf.type} (tensors: {counts})"
    gaps = (
        "".join(f" The Modelfile has no {escape(gap, 300)}." for gap in form.gguf.modelfile_gaps) if form.gguf else ""
    )
    if form.format == "gguf_adapter":
        beside = (
            f"{where}. It has the adapter alone: llama.cpp and Ollama load it beside a GGUF file of the base model."
        )
        quantized = " The training quantized that model; these programs use the weights that they get."
        return f"{beside}{quantized if form.merge_base else ''}{gaps}"
    on = {
        "trained": " The adapter was merged into the quantized weights that it was trained on, dequantized.",
        "original": " The adapter was merged into the original weights of the base model, not into the quantized ones "
        "that it was trained on.",
    }
    merged = on.get(form.merge_base, "")
    if not form.gguf:
        return f"A model that needs no peft, in {where}.{merged}"
    return f"{where}.{merged}{gaps}"
