"""A preflight child: `python -m services.probe.worker SPEC.json`. Without a supervisor it prints what it finds."""

from chassis.child.pipe import run_child
from services.probe.worker.preflight import preflight

if __name__ == "__main__":
    run_child(preflight)
