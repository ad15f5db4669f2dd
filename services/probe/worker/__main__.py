"""Starts the preflight child: `python -m services.probe.worker input.json`. Its story is in preflight.py."""

import importlib

from chassis.child.pipe import run_child
from chassis.child.warm_start import wait_for_input
from services.probe.warm_up import warm_up
from services.probe.worker.preflight import preflight


def _warm_up() -> None:
    warm_up()
    # The first shard that is written would import it, which takes half a second.
    importlib.import_module("datasets")


if __name__ == "__main__":
    wait_for_input(_warm_up)
    run_child(preflight)
