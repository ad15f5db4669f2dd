"""The whole of stage 4, in time order: writes the package, verifies it, publishes it."""

import mimetypes
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from chassis.child.phases import Phases
from chassis.child.pipe import EventSink
from chassis.failpoints import failpoint
from engine.data.tokenizer import Tokenizer
from engine.errors import JobError
from engine.file_hash import sha256_of
from engine.model_folder import unmergeable_tensor
from engine.serving import BASE_GGUF
from finetuneflow.v1.event_pb2 import ArtifactSaved, Warning
from finetuneflow.v1.stage_result_pb2 import DataStatistics, ExportedForm, ExportResult, GgufFile, PreflightResult
from services.exporter.phases import phases_of
from services.exporter.worker import package
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.forms import MERGED_FOLDER, Form
from services.exporter.worker.serving import served_by, serving_messages

if TYPE_CHECKING:
    # It imports torch, which only the verification needs.
    from services.exporter.worker.comparison import Verified

MEDIA_TYPES = {
    ".gguf": "application/octet-stream",
    ".jinja": "text/plain",
    ".md": "text/markdown",
    ".safetensors": "application/octet-stream",
}


def export(child_input: ExportInput, sink: EventSink) -> ExportResult:
    """Makes the package and publishes it file by file; the result's path is relative to the out_dir."""
    if child_input.of_base:
        with sink.ticking():
            child_input = _with_format(child_input)
    # A pause takes effect after this stage: it is shorter than to do it again.
    phases = Phases(sink, phases_of(pushed=child_input.config.export.hub is not None), pausable=False)
    child_input.out_dir.mkdir(parents=True, exist_ok=True)
    # On the out_dir's file system, so that publishing is a rename: no half-written file is ever under its name.
    with tempfile.TemporaryDirectory(prefix=".building-", dir=child_input.out_dir) as building:
        files, archive, scratch, sources = (
            Path(building, name) for name in ("files", package.ZIP, "scratch", "sources")
        )
        files.mkdir()
        sources.mkdir()

        phases.enter("writing_model")
        with sink.ticking():
            forms = _write_forms(child_input, files, sources, phases)

        phases.enter("writing_report")
        package.write_documents(child_input, files, forms)

        phases.enter("packing")
        with sink.ticking():
            package.write_manifest(child_input, files)
            package.write_zip(files, archive, _bytes_of(phases, "packing"))

        phases.enter("verifying", f"loads the package and compares it with {child_input.original}")
        exported = _verify(sink, child_input, forms, archive, scratch, sources, phases)

        phases.enter("publishing")
        for name, file in package.files_of(files).items():
            _publish(sink, file, name, child_input.out_dir, "export_file")
        size, digest = archive.stat().st_size, sha256_of(archive)
        _publish(sink, archive, package.ZIP, child_input.out_dir, "export_package")
    return ExportResult(
        package_path=package.ZIP,
        package_sha256=digest,
        package_size_bytes=size,
        forms=exported,
        servable_by=serving_messages(served_by(child_input, package.adapter_config(child_input), forms)),
        signing_key_fingerprint=child_input.signing.operator_key if child_input.signing else "",
    )


def _with_format(child_input: ExportInput) -> ExportInput:
    """Returns the input with the format of the rows that a base model reads, as if preflight had found them:
    conversations if it has a chat template."""
    chat = Tokenizer(child_input.model.path).has_own_template
    data = DataStatistics(format="chat" if chat else "text")
    return child_input.model_copy(update={"preflight": PreflightResult(training_data=data)})


def _write_forms(child_input: ExportInput, files: Path, sources: Path, phases: Phases) -> list[Form]:
    """Writes each form that is asked for, with the tokenizer beside it; to a folder of `sources` for each format of
    GGUF files what these are made of."""
    formats, forms = child_input.config.export.formats, []
    on_file = _files_of(child_input, phases, "writing_model", "writing")
    if child_input.of_base and (found := unmergeable_tensor(child_input.model.path)):
        name, dtype = found
        raise JobError(
            "MERGE_UNSUPPORTED",
            f"The base model has {name} in the number format {dtype}, which cannot be converted.",
            "Export a base model in 16 or 32 bits.",
        )
    if "gguf" in formats:
        from services.exporter.worker.gguf_files import check_gguf, write_gguf, write_source

        check_gguf(child_input)
    if "gguf_adapter" in formats:
        from services.exporter.worker.gguf_adapter import (
            check_gguf_adapter,
            write_adapter_source,
            write_gguf_adapter,
        )

        check_gguf_adapter(child_input)
    if "adapter" in formats:
        forms.append(package.write_weights(child_input, files))
        failpoint("export.model_written")
        _write_tokenizer(child_input, files)
    if "merged" in formats:
        # Only this form needs torch to be written.
        from services.exporter.worker.merged import write_merged

        forms.append(write_merged(child_input, files, on_bytes=_bytes_of(phases, "writing_model")))
        failpoint("export.merged")
        _write_tokenizer(child_input, files / MERGED_FOLDER)
    if "gguf" in formats:
        write_source(child_input, sources / "gguf", on_bytes=_bytes_of(phases, "writing_model"))
        forms += write_gguf(child_input, files, sources / "gguf", on_line=phases.check, on_file=on_file)
        failpoint("export.gguf_written")
    if "gguf_adapter" in formats:
        phases.enter("writing_model", f"writing {BASE_GGUF}, which adapters are compared on")
        write_adapter_source(child_input, sources / "gguf_adapter", on_line=phases.check)
        source = sources / "gguf_adapter"
        forms += write_gguf_adapter(child_input, files, source, on_line=phases.check, on_file=on_file)
    return forms


def _write_tokenizer(child_input: ExportInput, folder: Path) -> None:
    # Seconds of imports.
    from services.exporter.worker.rendering import write_generation_config

    package.write_tokenizer(child_input, folder)
    # That of a base model was copied with its weights, and names what ends its answers.
    if not child_input.of_base:
        write_generation_config(child_input, folder)


def _bytes_of(phases: Phases, name: str) -> Callable[[int, int], None]:
    """Returns a callback that reports the bytes done so far, and in all, as the progress of a phase."""
    return lambda done, total: phases.advance(name, done / max(total, 1), f"{done:,} of {total:,} bytes")


def _files_of(child_input: ExportInput, phases: Phases, name: str, verb: str) -> Callable[[str], None]:
    """Returns a callback that names the GGUF file that a phase is about to work on; another follows its progress."""
    export, began = child_input.config.export, set[str]()
    count = len(export.adapter_gguf_types) + ("gguf" in export.formats and len(export.distinct_gguf_types))

    def on_file(file: str) -> None:
        began.add(file)
        place = f"{len(began)} of {count} GGUF file{'s' if count > 1 else ''}"
        phases.enter(name, f"{verb} {file} ({place})")

    return on_file


def _verify(
    sink: EventSink,
    child_input: ExportInput,
    forms: list[Form],
    archive: Path,
    scratch: Path,
    sources: Path,
    phases: Phases,
) -> list[ExportedForm]:
    with sink.ticking():
        # Seconds of imports, and the only part of the export that needs torch.
        from services.exporter.worker.rendering import check_rendering
        from services.exporter.worker.verify import verify

        gguf = [form.gguf for form in forms if form.gguf]
        on_file = _files_of(child_input, phases, "verifying", "comparing")
        found = verify(child_input, archive, scratch, phases.check, forms, sources if gguf else None, on_file)
        # A GGUF file has no tokenizer beside it; its tokens and its chat template were compared.
        rendered = {
            form.name: check_rendering(
                child_input, scratch / form.path, f"{form.path}/" if form.path else "the package"
            )
            for form in forms
            if not form.gguf
        }
        failpoint("export.verified")
    shutil.rmtree(scratch)
    for form in forms:
        if not_run := found[form.name].not_run:
            sink.emit(
                Warning(
                    reason="VERIFIED_WITHOUT_MODEL",
                    message=f"The form {form.name} was compared with {child_input.original} tensor by tensor, but not "
                    f"run: {not_run}.",
                    advice="Give the exporter more memory if it lacks some; else try the model before you serve it.",
                )
            )
    # The Modelfiles of all files lack the same lines.
    for gap in gguf[0].modelfile_gaps if gguf else ():
        sink.emit(
            Warning(
                reason="MODELFILE_INCOMPLETE",
                message=f"The Modelfile has no {gap}.",
                advice="Serve the file with llama.cpp, which uses its chat template, or write the line yourself.",
            )
        )
    return [_message(form, found[form.name], rendered.get(form.name, 0)) for form in forms]


def _message(form: Form, verified: "Verified", num_rendered: int) -> ExportedForm:
    return ExportedForm(
        format=f"EXPORT_FORMAT_{form.format.upper()}",
        path=form.path,
        size_bytes=form.size_bytes,
        dtype=form.dtype,
        merge_base=form.merge_base,
        comparison=verified.comparison,
        num_rendered_rows=num_rendered,
        gguf=GgufFile(**asdict(form.gguf)) if form.gguf else None,
        not_run=verified.not_run,
    )


def _publish(sink: EventSink, file: Path, name: str, out_dir: Path, kind: str) -> None:
    target = out_dir / name
    target.parent.mkdir(exist_ok=True)
    file.replace(target)
    media_type = MEDIA_TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    saved = ArtifactSaved(path=name, kind=kind, media_type=media_type)
    saved.sha256, saved.size_bytes = sha256_of(target), target.stat().st_size
    sink.emit(saved)
