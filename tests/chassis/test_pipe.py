import json
import subprocess
import sys
from pathlib import Path

import pytest

from chassis.child.child_process import Pace
from chassis.child.pipe import EventSink, EventTooLarge, failure_of
from chassis.events import event_of
from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2, work_pb2
from finetuneflow.v1.stage_result_pb2 import InferenceSample

CHILD = Path(__file__).with_name("worker_child.py")


def test_child_without_supervisor_prints_its_events(tmp_path: Path) -> None:
    """Used to debug a stage without a broker."""
    spec = tmp_path / "input.json"
    spec.write_text(json.dumps({"do": "finish", "out_dir": str(tmp_path / "out")}))
    done = subprocess.run([sys.executable, str(CHILD), str(spec)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "step=100  total_steps=100  loss=0.01" in lines[-4]
    assert "stage_completed" in lines[-1]
    spec.write_text(json.dumps({"do": "bad_data", "out_dir": str(tmp_path / "out")}))
    done = subprocess.run([sys.executable, str(CHILD), str(spec)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "reason=BAD_DATA  message=Row 3 has no answer." in done.stdout


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried…"), "CUDA_OUT_OF_MEMORY"),
        (MemoryError(), "HOST_OUT_OF_MEMORY"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried…"), "HOST_OUT_OF_MEMORY"),
        (ZeroDivisionError("x"), "CRASHED"),
    ],
)
def test_out_of_memory_is_reported_separately_from_a_defect(error: Exception, reason: str) -> None:
    """Each needs different advice."""
    failure = failure_of(error)
    assert (failure.reason, failure.fault) == (reason, fine_tuning_job_pb2.FAULT_SYSTEM_ERROR)
    assert failure.advice


@pytest.mark.parametrize(("letter", "length", "listed"), [("d", 800, 50), ("d", 9000, 29), ("種", 9000, 29)])
def test_failure_with_a_thousand_invalid_rows_fits_into_one_event(letter: str, length: int, listed: int) -> None:
    """Otherwise the user would see a crash instead of the rows to correct, above all in multi-byte scripts."""

    class Bad(Exception):
        reason = "BAD_DATA"
        message = letter * 100_000
        advice = letter * 100_000
        violations = tuple(
            event_pb2.FieldViolation(field=f"training_data[0] row {row}", description=letter * length)
            for row in range(1000)
        )

    failure = failure_of(Bad())
    assert len(failure.violations) == listed
    assert failure.message.endswith(f"(1000 violations; the first {listed} are listed)")
    failure.last_lines.append("x" * 8192)
    EventSink(None, None).emit(failure)


def test_failure_message_with_invalid_unicode_is_reported() -> None:
    assert failure_of(ValueError("bad \udcff byte")).message == "ValueError: bad ? byte"


def test_emit_refuses_invalid_and_oversized_payloads() -> None:
    with pytest.raises(TypeError, match="not a payload"):
        event_of(work_pb2.WorkItem())
    with pytest.raises(EventTooLarge, match="sample"):
        EventSink(None, None).emit(InferenceSample(instruction="x" * 70_000))


def test_child_that_floods_its_supervisor_is_read_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events would fill the database, and the end of the job would wait until all are stored."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    pace = Pace()
    assert pace.delay(16 << 20) == 0
    assert pace.delay(256 << 10) == pytest.approx(0.5)
    now += 1.0
    assert pace.delay(256 << 10) == 0
    now += 3600.0
    assert pace.delay(16 << 20) == 0
    assert pace.delay(512 << 10) == pytest.approx(1.0)
