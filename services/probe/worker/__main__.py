"""Starts the preflight child: `python -m services.probe.worker input.json`. Its story is in preflight.py."""

from chassis.child.pipe import run_child
from services.probe.worker.preflight import preflight

if __name__ == "__main__":
    run_child(preflight)
