"""Starts the exporter's child: `python -m services.exporter.worker input.json`. Its story is in export.py."""

from pathlib import Path

from chassis.child.pipe import EventSink, run_child
from finetuneflow.v1.stage_result_pb2 import ExportResult
from services.exporter.worker.child_input import ExportInput
from services.quiet_environment import quiet_environment


def main(sink: EventSink, input_path: Path) -> ExportResult:
    """Runs one export."""
    child_input = ExportInput.model_validate_json(input_path.read_bytes())
    quiet_environment()
    # Seconds of imports, which have to come after the environment and within the life that the supervisor watches.
    with sink.ticking():
        from services.exporter.worker.export import export
    return export(child_input, sink)


if __name__ == "__main__":
    run_child(main)
