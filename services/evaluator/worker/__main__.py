"""The evaluator's child: `python -m services.evaluator.worker input.json`."""

import os
from pathlib import Path

from chassis.child.pipe import EventSink, run_child
from finetuneflow.v1.stage_result_pb2 import EvaluationResult
from services.evaluator.worker.child_input import EvaluationInput


def main(sink: EventSink, spec_path: Path) -> EvaluationResult:
    """One evaluation."""
    spec = EvaluationInput.model_validate_json(spec_path.read_bytes())
    # Everything needed is on disk; peft and transformers would ask the hub about the base model's name.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Bars on stderr would push the lines that matter out of the last ones that a failure reports.
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    # Seconds of imports, which have to come after the environment and within the life that the supervisor watches.
    with sink.ticking():
        from services.evaluator.worker.evaluate import evaluate
    return evaluate(spec, sink)


if __name__ == "__main__":
    run_child(main)
