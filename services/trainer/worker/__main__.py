"""The trainer's child: `python -m services.trainer.worker input.json`."""

from pathlib import Path

from chassis.child import out_of_memory
from chassis.child.pipe import EventSink, run_child
from chassis.child.warm_start import wait_for_input
from engine.errors import SystemFailure
from finetuneflow.v1.stage_result_pb2 import TrainingResult
from services.trainer.worker import oom
from services.trainer.worker.child_input import TrainingInput
from services.trainer.worker.warm_up import quiet, warm_up


def main(sink: EventSink, spec_path: Path) -> TrainingResult:
    """One attempt at a training."""
    spec = TrainingInput.model_validate_json(spec_path.read_bytes())
    quiet()
    # Seconds of imports, which have to come after the environment and within the life that the supervisor watches.
    with sink.ticking():
        from services.trainer.worker.recipe import train
    try:
        return train(spec, sink)
    except Exception as error:
        reason = out_of_memory.reason_of(error)
        if not reason:
            raise
        said = str(error).split("\n")[0][:1000]
        raise SystemFailure(reason, said or "Memory ran out.", oom.advice(spec.config)) from error


if __name__ == "__main__":
    wait_for_input(warm_up)
    run_child(main)
