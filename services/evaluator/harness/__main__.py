"""Starts the process: `python -m services.evaluator.harness input.json`. Its story is in run.py."""

import os
from pathlib import Path

from chassis.child.pipe import EventSink, run_child
from finetuneflow.v1.stage_result_pb2 import EvaluationResult
from services.evaluator.harness.harness_input import HarnessInput
from services.quiet_environment import quiet_environment


def main(sink: EventSink, input_path: Path) -> EvaluationResult:
    """Measures both models. The result has the field `harness` only."""
    harness_input = HarnessInput.model_validate_json(input_path.read_bytes())
    quiet_environment()
    os.environ["TQDM_DISABLE"] = "1"
    # Otherwise standard errors are computed by processes that need shared memory, which a confined child has not.
    os.environ["DISABLE_MULTIPROC"] = "1"
    with sink.ticking():
        from services.evaluator.harness.run import run
    return EvaluationResult(harness=run(harness_input, sink))


if __name__ == "__main__":
    run_child(main)
