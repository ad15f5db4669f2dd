"""Real training children that die at a failpoint, forked from a process that has done their imports."""

import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from chassis.child.pipe import EVENT_FD
from finetuneflow.v1.event_pb2 import CheckpointSaved, Event
from services.trainer.worker.child_input import TrainingInput

_FORKSERVER = get_context("forkserver")
_FORKSERVER.set_forkserver_preload(
    [
        "services.trainer.worker.__main__",
        "services.trainer.worker.recipe",
        "transformers.models.llama.modeling_llama",
        "transformers.models.auto.modeling_auto",
        "tests.services.trainer.children",
    ]
)
_LIMIT_SECONDS = 120


class Child:
    """A child that has ended: its exit status, its events and its output."""

    def __init__(self, out_dir: Path, status: int, folder: Path) -> None:
        self.out_dir, self.status = out_dir, status
        self.events = list(_events((folder / "events").read_bytes()))
        self.stderr = (folder / "stderr").read_text()

    def of(self, kind: str) -> list[Any]:
        """Payloads of a kind."""
        return [getattr(event, kind) for event in self.events if event.WhichOneof("payload") == kind]

    @property
    def checkpoints(self) -> dict[int, Path]:
        """The folders of the reported checkpoints, which a gateway would have accepted, by step."""
        saved: list[CheckpointSaved] = self.of("checkpoint")
        return {checkpoint.step: self.out_dir / checkpoint.path for checkpoint in saved}


def run(
    child_input: TrainingInput, *, die_at: str = "", before: Callable[..., None] | None = None, args: Sequence[Any] = ()
) -> Child:
    """Runs an input as `python -m services.trainer.worker` would, with SIGKILL at the failpoint `die_at`. `before` is
    called with `args` in the child before anything else."""
    folder = child_input.out_dir.with_name(f"{child_input.out_dir.name}.child")
    folder.mkdir()
    (folder / "input.json").write_text(child_input.model_dump_json())
    if die_at:
        (folder / die_at).write_text("kill")
    process = _FORKSERVER.Process(target=_child, args=(folder, before, tuple(args)))
    process.start()
    process.join(_LIMIT_SECONDS)
    if process.is_alive():
        process.kill()
        raise AssertionError("the child hangs")
    assert process.exitcode is not None
    return Child(child_input.out_dir, process.exitcode, folder)


def _child(folder: Path, before: Callable[..., None] | None, args: Sequence[Any]) -> None:
    from chassis import failpoints
    from chassis.child.pipe import run_child
    from services.trainer.worker.__main__ import main

    failpoints._FOLDER = str(folder)
    os.environ[EVENT_FD] = str(os.open(folder / "events", os.O_WRONLY | os.O_CREAT))
    sys.argv = ["worker", str(folder / "input.json")]
    stderr = os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT)
    os.dup2(stderr, 2)
    if before:
        before(*args)
    run_child(main)


def _events(data: bytes) -> Any:
    position = 0
    while position < len(data):
        length = shift = 0
        while True:
            byte = data[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if length and position + length <= len(data):
            yield Event.FromString(data[position : position + length])
        position += length
