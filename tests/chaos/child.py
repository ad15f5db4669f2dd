"""A child without torch that speaks the real pipe protocol: what it trains is a hash chain over (seed, step).

Every attempt takes about a second. A state is what the steps before it made it, so a training that was resumed wrongly
(a step lost, made twice, or made from damaged bytes) ends in other bytes than `package_of` says.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from google.protobuf.message import Message
from pydantic import BaseModel

from chassis.child.pipe import Cancelled, EventSink, Paused, run_child
from finetuneflow.v1 import event_pb2, stage_result_pb2

PACKAGE = "finetuneflow_export.zip"
_WEIGHT_BYTES = 32 * 1024


class ChildInput(BaseModel):
    """The input from the supervisor. Paths are absolute."""

    stage: str
    """Stage: preflight, training, evaluation or export."""
    seed: int
    total_steps: int
    save_steps: int
    """Steps between checkpoints; each is evaluated, and so is the last step."""
    step_seconds: float
    out_dir: Path
    config: str = ""
    """For preflight: a serialised ConfigResolved, base64."""
    checkpoint: Path | None = None
    """For training the checkpoint to resume from, for later stages the chosen one."""
    manifest_sha256: str = ""
    """SHA-256 of the manifest of `checkpoint`, for training."""
    final_train_loss: float = 0.0
    """For export: the result of training."""


@dataclass
class State:
    """The state of a training at a step."""

    seed: int
    step: int = 0
    digest: str = ""
    best_step: int = 0
    best_loss: float = 1.0

    def advance(self) -> None:
        """Runs the next step."""
        self.step += 1
        self.digest = hashlib.sha256(f"{self.digest} {self.seed} {self.step}".encode()).hexdigest()

    def evaluate(self) -> bool:
        """Returns True if the loss is the lowest so far."""
        if self.loss < self.best_loss:
            self.best_step, self.best_loss = self.step, self.loss
            return True
        return False

    @property
    def loss(self) -> float:
        """Value in [0, 1) from 48 bits of the digest, so that no two steps share one."""
        return int(self.digest[:12], 16) / 2**48

    @property
    def weights(self) -> bytes:
        return hashlib.shake_256(self.digest.encode()).digest(_WEIGHT_BYTES)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps(asdict(self)))
        (folder / "weights.bin").write_bytes(self.weights)

    @classmethod
    def read(cls, folder: Path) -> State:
        """Reads a checkpoint. Raises RuntimeError if it differs from what was written."""
        state = cls(**json.loads((folder / "state.json").read_text()))
        if (folder / "weights.bin").read_bytes() != state.weights:
            raise RuntimeError(f"the weights of step {state.step} are damaged")
        return state


def package_of(seed: int, total_steps: int, save_steps: int) -> bytes:
    """Returns the package of a job without faults."""
    best, last = _trained(seed, total_steps, save_steps)
    return _package(best, last.loss)


def evaluation_of(seed: int, total_steps: int, save_steps: int) -> float:
    """Returns the tuned loss that an evaluation of a job without faults measures."""
    return _trained(seed, total_steps, save_steps)[0].loss


def _trained(seed: int, total_steps: int, save_steps: int) -> tuple[State, State]:
    """Returns the best and the last state of a training without faults."""
    state, best = State(seed), State(seed)
    while state.step < total_steps:
        state.advance()
        if _saves(state.step, total_steps, save_steps) and state.evaluate():
            best = State(**asdict(state))
    return best, state


def _package(best: State, final_train_loss: float) -> bytes:
    text = f"{best.seed} {best.step} {best.digest} {final_train_loss!r}\n"
    return text.encode() + best.weights


def _saves(step: int, total_steps: int, save_steps: int) -> bool:
    return step % save_steps == 0 or step == total_steps


def main(sink: EventSink, spec_file: Path) -> Message | None:
    spec = ChildInput.model_validate_json(spec_file.read_bytes())
    run = {"preflight": _preflight, "training": _train, "evaluation": _evaluate, "export": _export}[spec.stage]
    return run(sink, spec)


def _pause(sink: EventSink, seconds: float) -> None:
    sink.tick()
    match sink.requested():
        case "pause":
            raise Paused
        case "cancel":
            raise Cancelled
    time.sleep(seconds)


def _preflight(sink: EventSink, spec: ChildInput) -> Message:
    sink.emit(event_pb2.Phase(name="tokenising", index=1, count=1))
    for _ in range(5):
        _pause(sink, spec.step_seconds)
    shards_path = f"shards/{spec.seed}"
    shards = spec.out_dir / shards_path
    shards.mkdir(parents=True)
    (shards / "rows.bin").write_bytes(hashlib.shake_256(str(spec.seed).encode()).digest(_WEIGHT_BYTES))
    sink.emit(event_pb2.ArtifactSaved(path=shards_path, kind="shards", media_type="inode/directory"))
    sink.emit(event_pb2.ConfigResolved.FromString(base64.b64decode(spec.config)))
    identity = stage_result_pb2.BaseModelIdentity(id="chain", revision="1", weights_sha256="0" * 64)
    return stage_result_pb2.PreflightResult(base_model=identity, total_steps=spec.total_steps, shards_path=shards_path)


def _train(sink: EventSink, spec: ChildInput) -> Message:
    sink.emit(event_pb2.Phase(name="loading_model", index=1, count=2))
    state = State(spec.seed)
    if spec.checkpoint:
        state = State.read(spec.checkpoint)
    sink.emit(event_pb2.Phase(name="training", index=2, count=2))
    if spec.checkpoint and state.step < spec.total_steps:
        restored = event_pb2.Restored(
            checkpoint_step=state.step, manifest_sha256=spec.manifest_sha256, first_step=state.step + 1
        )
        sink.emit(restored)
    while state.step < spec.total_steps:
        state.advance()
        time.sleep(spec.step_seconds)
        sink.tick()
        if sink.requested() == "cancel":
            raise Cancelled
        sink.emit(event_pb2.Log(step=state.step, total_steps=spec.total_steps, loss=state.loss))
        due = _saves(state.step, spec.total_steps, spec.save_steps)
        pausing = sink.requested() == "pause" and state.step < spec.total_steps
        if due:
            best = state.evaluate()
            sink.emit(event_pb2.Eval(step=state.step, eval_loss=state.loss, best=best))
        if due or pausing:
            _save(sink, spec, state, evaluated=due)
        if pausing:
            raise Paused
    sink.emit(event_pb2.Complete(total_steps=state.step, best_metric=state.best_loss, best_step=state.best_step))
    return stage_result_pb2.TrainingResult(
        total_steps=state.step,
        final_train_loss=state.loss,
        best_eval_loss=state.best_loss,
        best_step=state.best_step,
        best_checkpoint_path=f"checkpoints/step-{state.best_step}",
    )


def _save(sink: EventSink, spec: ChildInput, state: State, *, evaluated: bool) -> None:
    relative = f"checkpoints/step-{state.step}"
    writing, target = spec.out_dir / f"writing-{state.step}", spec.out_dir / relative
    state.write(writing)
    target.parent.mkdir(exist_ok=True)
    writing.rename(target)
    saved = event_pb2.CheckpointSaved(step=state.step, path=relative, best=state.best_step == state.step)
    if evaluated:
        saved.eval_loss = state.loss
    sink.emit(saved)


def _evaluate(sink: EventSink, spec: ChildInput) -> Message:
    assert spec.checkpoint is not None
    sink.emit(event_pb2.Phase(name="scoring", index=1, count=1))
    state = State.read(spec.checkpoint)
    for _ in range(5):
        _pause(sink, spec.step_seconds)
    return stage_result_pb2.EvaluationResult(base_loss=1.0, tuned_loss=state.loss, num_examples=1)


def _export(sink: EventSink, spec: ChildInput) -> Message:
    assert spec.checkpoint is not None
    sink.emit(event_pb2.Phase(name="packing", index=1, count=1))
    state = State.read(spec.checkpoint)
    for _ in range(5):
        _pause(sink, spec.step_seconds)
    (spec.out_dir / PACKAGE).write_bytes(_package(state, spec.final_train_loss))
    sink.emit(event_pb2.ArtifactSaved(path=PACKAGE, kind="export_package", media_type="application/zip"))
    return stage_result_pb2.ExportResult(package_path=PACKAGE)


if __name__ == "__main__":
    run_child(main)
