"""Starts the evaluator's child: `python -m services.evaluator.worker input.json`. Its story is in evaluate.py."""

from pathlib import Path

from chassis.child.pipe import EventSink, run_child
from finetuneflow.v1.stage_result_pb2 import EvaluationResult
from services.evaluator.worker.child_input import EvaluationInput
from services.evaluator.worker.inputs import prepare_inputs
from services.quiet_environment import quiet_environment


def main(sink: EventSink, input_path: Path) -> EvaluationResult:
    """Runs one evaluation."""
    child_input = EvaluationInput.model_validate_json(input_path.read_bytes())
    quiet_environment()
    prepare_inputs(child_input, sink)
    # Seconds of imports, which have to come after the environment and within the life that the supervisor watches.
    with sink.ticking():
        from services.evaluator.worker.evaluate import evaluate
    return evaluate(child_input, sink)


if __name__ == "__main__":
    run_child(main)
