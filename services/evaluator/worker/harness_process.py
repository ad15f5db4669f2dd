"""Runs lm-evaluation-harness in a process of its own. It inherits the confinement and the devices of this process."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from chassis.child.phases import Phases
from chassis.child.pipe import CONTROL_FD, EVENT_FD, SEE_LAST_OUTPUT, Cancelled, EventSink
from engine.errors import JobError, SystemFailure, Violation
from finetuneflow.v1.event_pb2 import Event, StageFailed
from finetuneflow.v1.fine_tuning_job_pb2 import FAULT_USER_ERROR
from finetuneflow.v1.stage_result_pb2 import EvaluationResult, HarnessResult
from services.evaluator.harness.harness_input import HarnessInput
from services.evaluator.worker.child_input import EvaluationInput
from services.evaluator.worker.models import Form

HARNESS: Final = "harness"
"""Phase in which it runs."""
_BATCH_SIZE: Final = 8
_POLL_SECONDS: Final = 0.5
"""Longest time until a cancel is obeyed."""
_MAX_METRICS: Final = 200
"""So that they fit into the event of the result, beside everything else."""


def add_harness(
    result: EvaluationResult, child_input: EvaluationInput, form: Form, sink: EventSink, phases: Phases
) -> None:
    """Measures both models on the tasks of the evaluation, and adds the values to the result.

    Raises JobError("HARNESS_TASK_FAILED"), SystemFailure("HARNESS_CRASHED"), or the failure that the process reports.
    """
    tasks = child_input.config.evaluation.harness_tasks
    phases.enter(HARNESS, ", ".join(tasks))
    folder = child_input.out_dir / ".harness"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "input.json"
    file.write_text(_harness_input(child_input, form, folder).model_dump_json(indent=1), "utf-8")
    with _Process(file) as process:
        measured = _follow(process, sink, phases, ", ".join(tasks)).harness
    put_values(result, measured)


def put_values(result: EvaluationResult, measured: HarnessResult) -> None:
    """Puts the values into the result: the first 200, and a finding if there are more."""
    result.harness.CopyFrom(measured)
    del result.harness.metrics[_MAX_METRICS:]
    if (more := len(measured.metrics) - _MAX_METRICS) > 0:
        result.findings.append(
            f"lm-evaluation-harness: {more:,} of {len(measured.metrics):,} values are not shown. Name fewer tasks."
        )


def _harness_input(child_input: EvaluationInput, form: Form, folder: Path) -> HarnessInput:
    config = child_input.config
    assert child_input.harness_folder  # noqa: S101 - the supervisor refuses tasks without it
    return HarnessInput.model_validate(
        {
            "out_dir": folder,
            "base": child_input.base,
            "tuned": child_input.tuned,
            "precision": form.precision,
            "device": form.on,
            "quantization": form.quantization,
            "chat_template": config.chat_template,
            "folder": child_input.harness_folder,
            "tasks": config.evaluation.harness_tasks,
            "limit": config.evaluation.harness_limit,
            "batch_size": config.hyperparameters.per_device_eval_batch_size or _BATCH_SIZE,
            "threads": child_input.threads,
        }
    )


class _Process:
    """The process, which ends when this one ends or leaves the block. Its output is that of this process."""

    def __init__(self, input_file: Path) -> None:
        self.events, event_write = os.pipe()
        control_read, self._control = os.pipe()
        given = {**os.environ, EVENT_FD: str(event_write), CONTROL_FD: str(control_read), "PYTHONSAFEPATH": "1"}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.evaluator.harness", str(input_file)],
                env=given,
                pass_fds=(event_write, control_read),
                stdin=subprocess.DEVNULL,
            )
        except OSError:
            os.close(self.events)
            os.close(self._control)
            raise
        finally:
            os.close(event_write)
            os.close(control_read)

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self.events)
        os.close(self._control)

    def wait(self) -> int:
        """Waits for its end. Returns the exit status, negative for a signal."""
        return self._process.wait()


def _follow(process: _Process, sink: EventSink, phases: Phases, where: str) -> EvaluationResult:
    for frame in _frames(process.events, sink):
        if not frame:
            sink.tick()
            continue
        event = Event.FromString(frame)
        if event.HasField("phase"):
            if event.phase.detail != where:
                where = event.phase.detail
                phases.enter(HARNESS, where, event.phase.fraction)
            else:
                phases.advance(HARNESS, event.phase.fraction)
        elif event.HasField("stage_failed"):
            raise _failure(event.stage_failed)
        elif event.HasField("stage_completed"):
            return event.stage_completed.evaluation
    status = process.wait()
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
    message = f"The process of lm-evaluation-harness {how} without a result ({where})."
    raise SystemFailure("HARNESS_CRASHED", message, f"Usually memory ran out. {SEE_LAST_OUTPUT}")


def _failure(failed: StageFailed) -> JobError | SystemFailure:
    if failed.fault != FAULT_USER_ERROR:
        return SystemFailure(failed.reason, failed.message, failed.advice)
    violations = [Violation(each.field, each.description) for each in failed.violations]
    return JobError(failed.reason, failed.message, failed.advice, violations)


def _frames(pipe: int, sink: EventSink) -> Iterator[bytes]:
    """Yields each frame (`chassis.child.pipe`) until the pipe is closed. Raises Cancelled once that is requested."""
    unread = b""
    while True:
        if sink.requested() == "cancel":
            raise Cancelled
        if not select.select([pipe], [], [], _POLL_SECONDS)[0]:
            continue
        if not (data := os.read(pipe, 64 * 1024)):
            return
        unread += data
        while (found := _first_frame(unread)) is not None:
            frame, unread = found
            yield frame


def _first_frame(data: bytes) -> tuple[bytes, bytes] | None:
    """Returns the first frame and what follows it; None if it is not complete."""
    length = 0
    for position, byte in enumerate(data[:10]):
        length |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            start = position + 1
            return (data[start : start + length], data[start + length :]) if len(data) >= start + length else None
    return None
