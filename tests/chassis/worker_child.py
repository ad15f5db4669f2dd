"""A child without torch that speaks the real pipe protocol. Its spec is {"do": what, "out_dir": path}."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from google.protobuf.message import Message

from chassis.child.pipe import Cancelled, EventSink, Paused, run_child
from chassis.child.warm_start import wait_for_input
from finetuneflow.v1 import event_pb2, stage_result_pb2


class BadData(Exception):
    reason = "BAD_DATA"
    message = "Row 3 has no answer."
    advice = "Give it one."
    violations = ()


def main(sink: EventSink, spec_file: Path) -> Message | None:
    spec = json.loads(spec_file.read_text())
    do, out = spec["do"], Path(spec["out_dir"])
    sink.emit(event_pb2.Phase(name="training", index=1, count=1))
    if do == "bad_data":
        raise BadData
    if do == "crash":
        raise RuntimeError("a defect of the recipe")
    if do == "exit":
        print("about to leave", flush=True)  # noqa: T201
        os._exit(3)
    if do == "no_room_in_child":
        raise OSError(errno.ENOSPC, "No space left on device", str(out / "model"))
    if do == "artifact":
        (out / "report.md").write_text("# Report")
        sink.emit(event_pb2.ArtifactSaved(path="report.md", kind="export_file"))
        return stage_result_pb2.TrainingResult(total_steps=1)
    if do == "grandchildren":
        # They hold the child's pipes open.
        for _ in range(2):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False)
        do = "stubborn"
    if do.startswith("save"):
        # Checkpoints as they are asked for: a file `save-<step>` beside the out_dir.
        step = 0
        sink.emit(event_pb2.Log(step=1))
        while not sink.requested():
            sink.tick()
            if (out.parent / f"save-{step + 1}").exists():
                step += 1
                _checkpoint(sink, out, step, best=step == 1)
                if (out.parent / "end").exists():
                    chosen = "checkpoints/step-1"
                    return stage_result_pb2.TrainingResult(total_steps=step, best_step=1, best_checkpoint_path=chosen)
            time.sleep(0.01)
        raise Paused
    if do == "environment":
        print(json.dumps(dict(os.environ)), flush=True)  # noqa: T201
        os._exit(4)
    if do == "huge":
        os.write(sink._event_fd or -1, b"\x80\x80\x05" + b"\0" * 81920)
    if do.startswith(("wait", "stubborn", "huge")):
        print("waiting for ever", flush=True)  # noqa: T201
        sink.emit(event_pb2.Phase(name="training", detail=os.environ.get("CUDA_VISIBLE_DEVICES", "")))
        sink.emit(event_pb2.Log(step=1))
        while True:
            sink.tick()
            if do.startswith("wait") and sink.requested() == "pause":
                _checkpoint(sink, out, 7)
                raise Paused
            if do.startswith("wait") and sink.requested() == "cancel":
                raise Cancelled
            time.sleep(0.01)
    steps = 100
    for step in range(1, steps + 1):
        sink.emit(event_pb2.Log(step=step, total_steps=steps, loss=1.0 / step))
    while do == "talk" and not sink.requested():
        steps += 1
        sink.emit(event_pb2.Log(step=steps))
        time.sleep(0.001)
    _checkpoint(sink, out, steps)
    (out / "report.md").write_text("# Report")
    sink.emit(event_pb2.ArtifactSaved(path="report.md", kind="export_file"))
    chosen = f"checkpoints/step-{steps}"
    return stage_result_pb2.TrainingResult(total_steps=steps, best_step=steps, best_checkpoint_path=chosen)


def _checkpoint(sink: EventSink, out: Path, step: int, *, best: bool = True) -> None:
    folder = out / "checkpoints" / f"step-{step}"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights" * 1000)
    sink.emit(event_pb2.CheckpointSaved(step=step, path=f"checkpoints/step-{step}", best=best))


def _warm_up() -> None:
    if os.environ.get("OMP_NUM_THREADS") == "broken":
        raise RuntimeError("an import failed")


if __name__ == "__main__":
    wait_for_input(_warm_up)
    run_child(main)
