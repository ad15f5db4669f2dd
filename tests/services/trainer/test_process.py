"""The training child as a process with two pipes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from finetuneflow.v1.event_pb2 import Event
from finetuneflow.v1.fine_tuning_job_pb2 import FAULT_SYSTEM_ERROR
from tests.services.trainer.children import run


def _events(stream: BinaryIO) -> Iterator[Event]:
    while first := stream.read(1):
        length, shift = first[0] & 0x7F, 7
        while first[0] & 0x80:
            first = stream.read(1)
            length |= (first[0] & 0x7F) << shift
            shift += 7
        if length:
            yield Event.FromString(stream.read(length))


def _run(
    child_input: Any, tmp_path: Path, *, say_at_first_log: bytes = b"", kill_at_step: int = 0
) -> tuple[list[Event], int, str]:
    file = tmp_path / "input.json"
    file.write_text(child_input.model_dump_json())
    if kill_at_step:
        (tmp_path / f"training.step-{kill_at_step}").write_text("kill")
    events_read, events_write = os.pipe()
    control_read, control_write = os.pipe()
    environment = os.environ | {
        "FTF_EVENT_FD": str(events_write),
        "FTF_CONTROL_FD": str(control_read),
        "FTF_FAILPOINTS": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    with (tmp_path / "stderr").open("w+") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", "services.trainer.worker", str(file)],
            env=environment,
            pass_fds=(events_write, control_read),
            stderr=stderr,
        )
        os.close(events_write)
        os.close(control_read)
        got = []
        with os.fdopen(events_read, "rb") as stream:
            for event in _events(stream):
                got.append(event)
                if event.WhichOneof("payload") == "log" and say_at_first_log:
                    os.write(control_write, say_at_first_log)
                    say_at_first_log = b""
        code = child.wait(60)
        os.close(control_write)
        stderr.seek(0)
        return got, code, stderr.read()


def test_pause_saves_a_checkpoint_and_releases(make_input: Any, tmp_path: Path) -> None:
    """A paused job would otherwise lose the steps since its last checkpoint."""
    child_input = make_input(total_steps=5000, logging_steps=1, eval_steps=5000, save_steps=5000)

    events, code, _ = _run(child_input, tmp_path, say_at_first_log=b"pause\n")

    assert code == 0
    assert [e.WhichOneof("payload") for e in events[-2:]] == ["checkpoint", "stage_released"]
    assert events[-1].stage_released.reason == "PAUSED"
    assert (child_input.out_dir / events[-2].checkpoint.path / "adapter_model.safetensors").is_file()


@pytest.mark.long
def test_training_resumed_in_another_process_has_same_result(make_input: Any, tmp_path: Path) -> None:
    """Otherwise a training whose machine was switched off could not resume from its checkpoint alone."""
    settings: dict[str, Any] = {"eval_steps": 6, "group_by_length": True}
    straight = run(make_input("straight", **settings))

    killed, code, _ = _run(make_input("killed", **settings), tmp_path, kill_at_step=13)
    newest = [event.checkpoint for event in killed if event.WhichOneof("payload") == "checkpoint"][-1]
    child_input = make_input("resumed", resume_from=tmp_path / "killed" / newest.path, **settings)
    resumed, _, stderr = _run(child_input, tmp_path)

    assert (code, newest.step) == (-signal.SIGKILL, 12)
    assert resumed[-1].WhichOneof("payload") == "stage_completed", stderr
    for name in ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "checkpoint.json"):
        found = child_input.out_dir / "checkpoints/step-20" / name
        assert found.read_bytes() == (straight.checkpoints[20] / name).read_bytes(), name


def test_crash_is_reported_with_exception(make_input: Any, tmp_path: Path) -> None:
    """Without it the user has nothing to start from."""
    child_input = make_input()
    child_input.model.path = tmp_path / "nowhere"

    events, code, stderr = _run(child_input, tmp_path)

    failed = events[-1].stage_failed
    assert code == 1
    assert (failed.fault, failed.reason) == (FAULT_SYSTEM_ERROR, "CRASHED")
    assert "nowhere" in failed.message and "Traceback" in stderr
