"""The GGUF form: files for llama.cpp and Ollama, which llama.cpp's converter and library make of the merged model."""

import collections
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
from gguf import GGUFReader

from engine.config.job import CONVERTED_TYPES
from engine.data.tokenizer import Tokenizer
from engine.errors import JobError, SystemFailure
from engine.gguf_conversion import (
    TOKENIZER_FILES,
    converter,
    drop_chat_template,
    explained,
    run_converter,
    run_program,
)
from engine.gguf_support import gguf_refusal
from engine.model.merge import merge
from engine.serving import MODELFILE
from services.exporter.gguf_types import quantizer_missing
from services.exporter.quantizer import UNUSABLE
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.forms import GGUF_FOLDER, Form, GgufFile
from services.exporter.worker.merged import merge_settings
from services.exporter.worker.modelfile import Modelfile, modelfile
from services.exporter.worker.row_forms import RowForms
from services.exporter.worker.sentencepiece_tokens import is_sentencepiece, set_scores

ADD_BOS: Final = "tokenizer.ggml.add_bos_token"
_GENERATION: Final = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
_DISK_FULL: Final = re.compile(r"No space left|\d+ requested and \d+ written")
"""Output of a converter on a full disk; the second form is NumPy's."""
_OUT_OF_SPACE: Final = ("MemoryError", "OSError: ", "bad_alloc", "iostream error")
"""Texts in the output of a converter without memory or disk space."""


def check_gguf(child_input: ExportInput) -> None:
    """Raises JobError("GGUF_UNSUPPORTED") for a model that converts without an error to another one, SystemFailure if
    the converter is not installed or the library for a type is missing."""
    converter()
    if child_input.config.export.quantized_gguf_types and child_input.libllama is None:
        raise quantizer_missing("it was not given llama.cpp's library")
    if found := gguf_refusal(child_input.model.path):
        raise _unsupported(*found)


def write_source(child_input: ExportInput, folder: Path, on_bytes: Callable[[int, int], None]) -> None:
    """Writes the model that is converted: the merged weights in float32, so that they are rounded once, and the base
    model's own tokenizer files, from which the converter recognizes the tokenizer. `on_bytes` is that of `merge`."""
    folder.mkdir()
    settings = merge_settings(child_input)
    merge(
        settings.base,
        settings.adapter,
        folder,
        dtype=torch.float32,
        quantised=settings.quantised,
        on_bytes=on_bytes,
    )
    model = child_input.model
    for name in TOKENIZER_FILES:
        if (model.path / name).is_file():
            shutil.copyfile(model.path / name, folder / name)
    drop_chat_template(folder)
    if template := chat_template(child_input):
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    (folder / "README.md").write_text(model_card_of_base(child_input), "utf-8")


def model_card_of_base(child_input: ExportInput, name: str | None = None) -> str:
    """Returns the README.md from which a converter reads base model and licence, and the name if it takes no option."""
    model = child_input.model
    card = {"base_model": [model.id], "license": model.license.lower() or None, "tags": ["finetuneflow"]}
    # JSON is YAML.
    return f"---\n{json.dumps(card if name is None else {**card, 'name': name})}\n---\n"


def chat_template(child_input: ExportInput) -> str:
    """Returns the chat template that the rows were written with; empty if none of them was a conversation.

    Without the marks of the text to train: llama.cpp's Jinja does not know them. A condition that holds has their
    syntax.
    """
    if not RowForms.of(child_input).chat:
        return ""
    template = Tokenizer(child_input.model.path, child_input.config.chat_template).template
    return _GENERATION.sub(lambda found: f"{found[1]}{'endif' if found[2] else 'if true'}{found[3]}", template)


def write_gguf(
    child_input: ExportInput,
    package: Path,
    source: Path,
    on_line: Callable[[], None],
    on_file: Callable[[str], None],
) -> list[Form]:
    """Writes the files to the folder `gguf` of the package, and a Modelfile if rows were conversations.

    `source` has the model (`write_source`). `on_line` is called for each line that the converter or the library
    prints, `on_file` with the name of each file before it is made. Raises
    JobError("GGUF_UNSUPPORTED"), SystemFailure("GGUF_QUANTIZER_MISSING").
    """
    folder = package / GGUF_FOLDER
    folder.mkdir()
    export, forms = child_input.config.export, []
    names = {type_: gguf_name(child_input, type_) for type_ in export.distinct_gguf_types}
    made = _write_modelfile(child_input, folder, list(names.values()))
    unrounded = unrounded_file(child_input, package, source)
    if export.quantized_gguf_types:
        # The first step to the library's files.
        on_file(names.get("f32") or names[export.quantized_gguf_types[0]])
        _convert_model(child_input, source, unrounded, "f32", on_line)
    for type_, name in names.items():
        file = folder / name
        on_file(name)
        if type_ not in CONVERTED_TYPES:
            assert child_input.libllama  # noqa: S101 - it was checked first
            _quantize(child_input.libllama, unrounded, file, type_, on_line)
        elif not file.exists():
            _convert_model(child_input, source, file, type_, on_line)
        counts = collections.Counter(tensor.tensor_type.name for tensor in GGUFReader(file).tensors)
        about = GgufFile(
            file=f"{GGUF_FOLDER}/{name}",
            type=type_,
            tensor_types=dict(sorted(counts.items())),
            modelfile=f"{GGUF_FOLDER}/{MODELFILE}" if made else "",
            modelfile_gaps=made.gaps if made else (),
        )
        form = Form("gguf", GGUF_FOLDER, file.stat().st_size, type_, merge_base=_merge_base(child_input), gguf=about)
        forms.append(form)
    return forms


def gguf_name(child_input: ExportInput, type_: str) -> str:
    """Returns the name of the file of that type."""
    return f"{file_name(child_input)}-{type_}.gguf"


def unrounded_file(child_input: ExportInput, package: Path, source: Path) -> Path:
    """Returns the file that the library's files are made of: that of type f32, beside the model in `source` if the
    package has none. Its numbers are those of the model, so they are rounded once."""
    asked = "f32" in child_input.config.export.distinct_gguf_types
    return package / GGUF_FOLDER / gguf_name(child_input, "f32") if asked else source / "unrounded.gguf"


def _merge_base(child_input: ExportInput) -> str:
    return child_input.config.export.merge_base if child_input.config.method == "qlora" else ""


def file_name(child_input: ExportInput) -> str:
    """Returns how the names of the GGUF files begin."""
    return re.sub(r"[^a-z0-9._]+", "-", child_input.given_name.lower())[:60].strip("-.") or "model"


def _write_modelfile(child_input: ExportInput, folder: Path, files: Sequence[str]) -> Modelfile | None:
    if not RowForms.of(child_input).chat:
        return None
    made = modelfile(child_input, files)
    (folder / MODELFILE).write_text(made.text, "utf-8")
    return made


def _convert_model(
    child_input: ExportInput, source: Path, target: Path, type_: str, on_line: Callable[[], None]
) -> None:
    convert(child_input, source, target, type_, on_line)
    # With many tokens it takes a second to open.
    reader = GGUFReader(target, "r+")
    _set_add_bos(reader, adds_bos(child_input))
    if is_sentencepiece(reader):
        set_scores(reader, child_input.model.path / "tokenizer.json")


def convert(child_input: ExportInput, source: Path, target: Path, type_: str, on_line: Callable[[], None]) -> None:
    """Converts the model in a folder to a file. Raises JobError("GGUF_UNSUPPORTED")."""
    arguments = [str(source), "--outfile", str(target), "--outtype", type_]
    # In one argument: a name may begin like an option.
    arguments.append(f"--model-name={child_input.config.display_name}")
    run_script(converter(), arguments, on_line)


def run_script(script: Path, arguments: Sequence[str], on_line: Callable[[], None]) -> None:
    """Runs a converter of llama.cpp. `on_line` is called for each line that it prints.

    Raises JobError("GGUF_UNSUPPORTED"), SystemFailure("GGUF_CONVERTER_CRASHED").
    """
    status, lines = run_converter(script, arguments, on_line)
    if status:
        raise _failure("converter", status, lines)


def _quantize(library: Path, source: Path, target: Path, type_: str, on_line: Callable[[], None]) -> None:
    argv = [sys.executable, "-m", "services.exporter.quantizer", str(library), str(source), str(target), type_]
    status, lines = run_program(argv, {}, on_line)
    if status == UNUSABLE:
        raise quantizer_missing(lines[-1])
    if status:
        raise _failure("library", status, lines)


def _failure(program: str, status: int, lines: Sequence[str]) -> JobError | SystemFailure:
    output = "\n".join(lines)
    if _DISK_FULL.search(output):
        return SystemFailure(
            "DISK_FULL",
            f"llama.cpp's {program} could not write: {output[-400:]}",
            "Ask the operator to make room on the disk of the exporter's FTF_HOME.",
        )
    if status < 0 or any(sign in output for sign in _OUT_OF_SPACE):
        return SystemFailure(
            "GGUF_CONVERTER_CRASHED",
            f"llama.cpp's {program} ended with status {status}. Its last output: {output[-400:]}",
            "Usually memory or disk space ran out: ask the operator to give the exporter more.",
        )
    if found := explained(lines):
        return _unsupported(*found)
    last = lines[-1] if lines else f"status {status}"
    return _unsupported(f"its conversion failed: {last[-400:]}", "Export it as merged. If it should work, report it.")


def _unsupported(problem: str, advice: str) -> JobError:
    return JobError("GGUF_UNSUPPORTED", f"The model cannot be exported as gguf: {problem}.", advice)


def adds_bos(child_input: ExportInput) -> bool:
    """Returns whether a reader puts the begin-of-text token before a prompt. Not before a conversation: the chat
    template writes it where it belongs."""
    if RowForms.of(child_input).chat:
        return False
    return bool(Tokenizer(child_input.model.path, child_input.config.chat_template).leading_ids)


def _set_add_bos(reader: GGUFReader, wanted: bool) -> None:
    field, kind = reader.get_field(ADD_BOS), reader.get_field("tokenizer.ggml.model")
    if field is not None:
        field.parts[field.data[0]][0] = wanted
        reader.data.flush()
    # Without the key llama.cpp adds the token for this kind of tokenizer only.
    elif wanted != (kind is not None and kind.contents() == "llama"):
        raise _unsupported(
            f"its conversion has no {ADD_BOS}, so llama.cpp would {'not ' * wanted}put a token before each prompt",
            "Export it as merged.",
        )
