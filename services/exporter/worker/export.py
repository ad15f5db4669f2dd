"""The whole of stage 4, in time order: writes the package, verifies it, publishes it."""

import mimetypes
import shutil
import tempfile
from pathlib import Path

from chassis.child.phases import Phases
from chassis.child.pipe import EventSink
from chassis.failpoints import failpoint
from engine.file_hash import sha256_of
from finetuneflow.v1.event_pb2 import ArtifactSaved, Warning
from finetuneflow.v1.stage_result_pb2 import ExportComparison, ExportedForm, ExportResult
from services.exporter.phases import phases_of
from services.exporter.worker import package
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.forms import MERGED_FOLDER, Form

MEDIA_TYPES = {".safetensors": "application/octet-stream", ".jinja": "text/plain", ".md": "text/markdown"}


def export(child_input: ExportInput, sink: EventSink) -> ExportResult:
    """Makes the package and publishes it file by file; the result's path is relative to the out_dir."""
    # A pause takes effect after this stage: it is shorter than to do it again.
    phases = Phases(sink, phases_of(pushed=child_input.config.export.hub is not None), pausable=False)
    package.check_formats(child_input)
    child_input.out_dir.mkdir(parents=True, exist_ok=True)
    # On the out_dir's file system, so that publishing is a rename: no half-written file is ever under its name.
    with tempfile.TemporaryDirectory(prefix=".building-", dir=child_input.out_dir) as building:
        files, archive, scratch = (Path(building, name) for name in ("files", package.ZIP, "scratch"))
        files.mkdir()

        phases.enter("writing_model")
        with sink.ticking():
            forms = _write_forms(child_input, files, phases)

        phases.enter("writing_report")
        package.write_documents(child_input, files, forms)

        phases.enter("packing")
        with sink.ticking():
            package.write_manifest(child_input, files)
            package.write_zip(files, archive)

        phases.enter("verifying", "loads the package and compares it with the checkpoint")
        exported = _verify(sink, child_input, forms, archive, scratch, phases)

        phases.enter("publishing")
        for name, file in package.files_of(files).items():
            _publish(sink, file, name, child_input.out_dir, "export_file")
        size, digest = archive.stat().st_size, sha256_of(archive)
        _publish(sink, archive, package.ZIP, child_input.out_dir, "export_package")
    return ExportResult(package_path=package.ZIP, package_sha256=digest, package_size_bytes=size, forms=exported)


def _write_forms(child_input: ExportInput, files: Path, phases: Phases) -> list[Form]:
    """Writes each form that is asked for, with the tokenizer beside it."""
    formats, forms = child_input.config.export.formats, []
    if "adapter" in formats:
        forms.append(package.write_weights(child_input, files))
        failpoint("export.model_written")
        package.write_tokenizer(child_input, files)
    if "merged" in formats:
        # Only this form needs torch to be written.
        from services.exporter.worker.merged import write_merged

        forms.append(write_merged(child_input, files, on_tensor=phases.check))
        failpoint("export.merged")
        package.write_tokenizer(child_input, files / MERGED_FOLDER)
    return forms


def _verify(
    sink: EventSink, child_input: ExportInput, forms: list[Form], archive: Path, scratch: Path, phases: Phases
) -> list[ExportedForm]:
    with sink.ticking():
        # Seconds of imports, and the only part of the export that needs torch.
        from services.exporter.worker.verify import verify

        comparisons = verify(child_input, archive, scratch, on_row=phases.check)
        failpoint("export.verified")
    shutil.rmtree(scratch)
    if None in comparisons.values():
        sink.emit(
            Warning(
                reason="VERIFIED_WITHOUT_MODEL",
                message="The model does not fit into free memory: the package was compared with the checkpoint "
                "tensor by tensor, but not run.",
                advice="Give the exporter more memory if you want every package to be run before it is published.",
            )
        )
    return [_message(form, comparisons[form.format]) for form in forms]


def _message(form: Form, comparison: ExportComparison | None) -> ExportedForm:
    return ExportedForm(
        format=f"EXPORT_FORMAT_{form.format.upper()}",
        path=form.path,
        size_bytes=form.size_bytes,
        dtype=form.dtype,
        merge_base=form.merge_base,
        comparison=comparison,
    )


def _publish(sink: EventSink, file: Path, name: str, out_dir: Path, kind: str) -> None:
    target = out_dir / name
    target.parent.mkdir(exist_ok=True)
    file.replace(target)
    media_type = MEDIA_TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    saved = ArtifactSaved(path=name, kind=kind, media_type=media_type)
    saved.sha256, saved.size_bytes = sha256_of(target), target.stat().st_size
    sink.emit(saved)
