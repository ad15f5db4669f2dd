"""The trainer's child: `python -m services.trainer.worker spec.json`."""

import os
import sys
import traceback
from pathlib import Path

from chassis.pipe import EventSink, run_child
from engine.errors import JobError
from finetuneflow.v1.stage_result_pb2 import TrainingResult
from services.trainer.worker import oom
from services.trainer.worker.spec import TrainingSpec


def main(sink: EventSink, spec_path: Path) -> TrainingResult:
    """One attempt at a training."""
    spec = TrainingSpec.model_validate_json(spec_path.read_bytes())
    # Everything needed is on disk; peft and transformers would ask the hub about the base model's name.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Bars on stderr would push the lines that matter out of the last ones that a failure reports.
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    # Seconds of imports, which have to come after the environment and within the life that the supervisor watches.
    with sink.ticking():
        from services.trainer.worker.recipe import train
    try:
        return train(spec, sink)
    except JobError:
        raise
    except Exception as error:
        failed = oom.failure(error, spec.config)
        if failed is None:
            raise
        traceback.print_exc()
        sink.emit(failed)
        sys.exit(1)


if __name__ == "__main__":
    run_child(main)
