"""Starts the preflight child: `python -m services.probe.worker input.json`. Its story is in preflight.py."""

from chassis.child.pipe import run_child
from chassis.child.warm_start import wait_for_input
from services.probe.warm_up import warm_up
from services.probe.worker.preflight import preflight

if __name__ == "__main__":
    wait_for_input(warm_up)
    run_child(preflight)
