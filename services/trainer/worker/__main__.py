"""Starts the trainer's child: `python -m services.trainer.worker input.json`. Its story is in recipe.py."""

import os
from pathlib import Path

from chassis.child.pipe import EventSink, run_child
from chassis.child.warm_start import wait_for_input
from finetuneflow.v1.stage_result_pb2 import TrainingResult
from services.quiet_environment import quiet_environment
from services.trainer.worker import oom
from services.trainer.worker.child_input import TrainingInput
from services.trainer.worker.launch import RANK, Launcher
from services.trainer.worker.warm_up import warm_up

_launcher = Launcher()


def main(sink: EventSink, input_path: Path) -> TrainingResult | None:
    """Runs one attempt at a training, or starts the processes that run it together and returns None."""
    child_input = TrainingInput.model_validate_json(input_path.read_bytes())
    if (world_size := child_input.config.world_size) > 1 and RANK not in os.environ:
        _launcher.run(world_size, child_input.threads, child_input.out_dir, sink)
        return None
    quiet_environment()
    # Seconds of imports, which have to come after the environment and within the life that the supervisor watches.
    with sink.ticking():
        from services.trainer.worker.recipe import train
    with oom.with_advice(child_input.config):
        return train(child_input, sink)


if __name__ == "__main__":
    wait_for_input(warm_up)
    run_child(main, _launcher.request)
