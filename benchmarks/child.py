"""The child of `benchmarks.training run`: emits log events at an even RATE per second until it is stopped."""

from __future__ import annotations

import json
import time
from pathlib import Path

from benchmarks.training import log_at
from chassis.child.pipe import Cancelled, EventSink, Paused, run_child
from finetuneflow.v1.event_pb2 import Phase


def main(sink: EventSink, spec: Path) -> None:
    rate = float(json.loads(spec.read_text())["rate"])
    sink.emit(Phase(name="training", index=1, count=1))
    began = time.monotonic()
    step = 0
    while True:
        if word := sink.requested():
            raise Cancelled if word == "cancel" else Paused
        due = int((time.monotonic() - began) * rate)
        while step < due:
            step += 1
            sink.emit(log_at(step))
        time.sleep(min(0.001, 1 / rate))


if __name__ == "__main__":
    run_child(main)
