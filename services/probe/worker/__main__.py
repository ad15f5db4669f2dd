"""Runs a preflight: `python -m services.probe.worker input.json`. Without a supervisor it prints its events."""

from chassis.child.pipe import run_child
from services.probe.worker.preflight import preflight

if __name__ == "__main__":
    run_child(preflight)
