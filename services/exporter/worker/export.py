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
from finetuneflow.v1.stage_result_pb2 import ExportResult
from services.exporter.worker import package
from services.exporter.worker.child_input import ExportInput

PHASES = ("writing_model", "writing_report", "packing", "verifying", "publishing")
MEDIA_TYPES = {".safetensors": "application/octet-stream", ".jinja": "text/plain", ".md": "text/markdown"}


def export(child_input: ExportInput, sink: EventSink) -> ExportResult:
    """Makes the package and publishes it file by file; the result's path is relative to the out_dir."""
    # A pause takes effect after this stage: it is shorter than to do it again.
    phases = Phases(sink, PHASES, pausable=False)
    package.check_formats(child_input)
    child_input.out_dir.mkdir(parents=True, exist_ok=True)
    # On the out_dir's file system, so that publishing is a rename: no half-written file is ever under its name.
    with tempfile.TemporaryDirectory(prefix=".building-", dir=child_input.out_dir) as building:
        files, archive, scratch = (Path(building, name) for name in ("files", package.ZIP, "scratch"))
        files.mkdir()

        phases.enter("writing_model")
        with sink.ticking():
            adapter_config = package.write_model(child_input, files)
            failpoint("export.model_written")
            package.write_tokenizer(child_input, files)

        phases.enter("writing_report")
        package.write_documents(child_input, files, adapter_config)

        phases.enter("packing")
        with sink.ticking():
            package.write_manifest(child_input, files)
            package.write_zip(files, archive)

        phases.enter("verifying", "loads the package and compares it with the checkpoint")
        _verify(sink, child_input, archive, scratch)

        phases.enter("publishing")
        for file in sorted(files.iterdir()):
            _publish(sink, file, child_input.out_dir, "export_file")
        size, digest = archive.stat().st_size, sha256_of(archive)
        _publish(sink, archive, child_input.out_dir, "export_package")
    return ExportResult(package_path=package.ZIP, package_sha256=digest, package_size_bytes=size)


def _verify(sink: EventSink, child_input: ExportInput, archive: Path, scratch: Path) -> None:
    with sink.ticking():
        # Seconds of imports, and the only part of the export that needs torch.
        from services.exporter.worker.verify import verify

        verified = verify(child_input, archive, scratch)
        failpoint("export.verified")
    shutil.rmtree(scratch)
    if verified.max_difference is None:
        sink.emit(
            Warning(
                reason="VERIFIED_WITHOUT_MODEL",
                message="The base model does not fit into free memory: the package was compared with the checkpoint "
                "tensor by tensor, but not run.",
                advice="Give the exporter more memory if you want every package to be run before it is published.",
            )
        )


def _publish(sink: EventSink, file: Path, out_dir: Path, kind: str) -> None:
    target = out_dir / file.name
    file.replace(target)
    media_type = MEDIA_TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    saved = ArtifactSaved(path=file.name, kind=kind, media_type=media_type)
    saved.sha256, saved.size_bytes = sha256_of(target), target.stat().st_size
    sink.emit(saved)
