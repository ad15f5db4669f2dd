"""The process of a delivery: `delivery_child.py FILE`, where the file says what it does. It tells its secret's hash."""

import hashlib
import queue
import sys
import time
from pathlib import Path

from google.protobuf.message import Message

from chassis.child.pipe import EventSink, run_child
from finetuneflow.v1 import event_pb2, stage_result_pb2

lines: "queue.SimpleQueue[str]" = queue.SimpleQueue()


class Forbidden(Exception):
    reason = "HUB_PUSH_FORBIDDEN"
    message = "The token may not write."
    advice = "Use another."
    violations = ()


def main(sink: EventSink, input_path: Path) -> Message | None:
    do = input_path.read_text()
    secret = lines.get()
    sink.emit(event_pb2.Phase(name="pushing", detail=hashlib.sha256(secret.encode()).hexdigest()))
    if do == "forbidden":
        raise Forbidden
    while do == "wait":
        sink.tick()
        time.sleep(0.01)
    return stage_result_pb2.TrainingResult(final_train_loss=0.5)


if __name__ == "__main__":
    assert len(sys.argv) == 2
    run_child(main, lines.put)
