"""A child that answers one question: `python -m services.probe.worker.errand INPUT.json`, an InspectionInput or a
DryRunInput. Without a spec it does its imports and waits for one."""

import importlib
import json
from pathlib import Path

from chassis.child.pipe import EventSink, run_child
from chassis.child.warm_start import wait_for_spec
from finetuneflow.v1.event_pb2 import StageCompleted
from services.probe.worker import dry_run, look

_PROGRAMS = {"look": look.main, "dry_run": dry_run.main}


def warm_up() -> None:
    """Imports what is otherwise loaded with the first tokenizer, and takes longest."""
    importlib.import_module("transformers.tokenization_utils_tokenizers")


def main(sink: EventSink, spec_path: Path) -> StageCompleted:
    """Answers whichever question the spec holds."""
    kind = json.loads(spec_path.read_bytes())["kind"]
    return _PROGRAMS[kind](sink, spec_path)


if __name__ == "__main__":
    wait_for_spec(warm_up)
    run_child(main)
