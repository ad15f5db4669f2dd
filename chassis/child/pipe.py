"""The child's side of the pipe between a stage's supervisor and its child process.

The child inherits two pipe ends. FTF_EVENT_FD: it writes length-delimited Event messages (a varint, then that many
bytes); a length of 0 is a tick, a sign of life. FTF_CONTROL_FD: it reads lines, `pause` or `cancel`; the end of it
means that the supervisor is gone, and the child exits at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NoReturn

from google.protobuf.message import Message

from chassis.child import out_of_memory
from chassis.error_protocols import CallerFault, SystemFault
from chassis.events import ENDINGS, MAX_EVENT_BYTES, event_of, fields_by_message, varint
from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2

EVENT_FD: Final = "FTF_EVENT_FD"
CONTROL_FD: Final = "FTF_CONTROL_FD"
SEE_LAST_OUTPUT: Final = (
    "See its last output: `ftf jobs explain JOB`, `ftf evaluations get EVALUATION` or `ftf exports get EXPORT`. If "
    "data and settings are correct, report a bug with that output."
)
"""Advice for an error that was not foreseen."""
_RESERVED_BYTES = 1024
"""Reserved for what the supervisor adds to an event: ids, ordinal, paths in the artifact store."""
_VIOLATIONS_BYTES = 48 * 1024
"""Byte limit at which a StageFailed stops adding violations; the supervisor adds up to 8 KiB of last lines."""


_RESULTS = fields_by_message(event_pb2.StageCompleted.DESCRIPTOR.oneofs_by_name["result"])


class Paused(Exception):
    """Raised by `main` to release the attempt after a requested pause, once a checkpoint was saved and emitted."""


class Cancelled(Exception):
    """Raised by `main` to end at once after a requested cancel."""


class EventTooLarge(Exception):
    """An event above 64 KiB."""


class EventSink:
    """Emits a child's events. Every method may be called from any thread."""

    def __init__(
        self, event_fd: int | None, control_fd: int | None, on_line: Callable[[str], None] | None = None
    ) -> None:
        """`on_line` gets the lines of the control pipe, from a thread, instead of `requested`."""
        self._event_fd = event_fd
        self._on_line = on_line
        self._lock = threading.Lock()
        self._requested = ""
        self._next_tick = 0.0
        self.ended = False
        """True once an event that ends the attempt was emitted."""
        if control_fd is not None:
            threading.Thread(target=self._watch, args=(control_fd,), name="control", daemon=True).start()

    @classmethod
    def open(cls, on_line: Callable[[str], None] | None = None) -> EventSink:
        """Opens the inherited pipe; without one, events become readable lines on stdout."""
        fds = [os.environ.pop(name, None) for name in (EVENT_FD, CONTROL_FD)]
        event_fd, control_fd = (None if fd is None else int(fd) for fd in fds)
        for fd in (event_fd, control_fd):
            if fd is not None:
                os.set_inheritable(fd, False)
        return cls(event_fd, control_fd, on_line)

    def emit(self, payload: Message, severity: event_pb2.Severity | None = None) -> None:
        """Emits an event. `payload` is one of Event's payload messages: Log, Phase, StageFailed, …

        Paths in CheckpointSaved and ArtifactSaved are relative to the out_dir. The files are complete and must not be
        changed afterwards: the supervisor uploads them. Raises EventTooLarge above 64 KiB.
        """
        event = event_of(payload, severity)
        data = event.SerializeToString()
        if len(data) > MAX_EVENT_BYTES - _RESERVED_BYTES:
            kind = event.WhichOneof("payload")
            raise EventTooLarge(f"a {kind} event of {len(data)} bytes; the limit is {MAX_EVENT_BYTES}")
        if event.WhichOneof("payload") in ENDINGS:
            self.ended = True
        if self._event_fd is None:
            sys.stdout.write(_format_event(event) + "\n")
            sys.stdout.flush()
        else:
            self._write(varint(len(data)) + data)

    def send(self, frame: bytes) -> None:
        """Sends a frame that is no event, to a supervisor that expects it. Without a pipe it becomes a line."""
        if self._event_fd is None:
            sys.stdout.write(frame.decode(errors="replace") + "\n")
            sys.stdout.flush()
        else:
            self._write(varint(len(frame)) + frame)

    def tick(self) -> None:
        """Reports that the child is alive. Cheap enough for every iteration: at most one write per second.

        A child that neither emits nor ticks for its stall limit is killed.
        """
        now = time.monotonic()
        if self._event_fd is not None and now >= self._next_tick:
            self._next_tick = now + 1.0
            self._write(b"\0")

    @contextlib.contextmanager
    def ticking(self) -> Iterator[None]:
        """Ticks from a thread during the block, for a call that cannot tick. It hides a hang: for bounded work only."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(1.0):
                self.tick()

        thread = threading.Thread(target=beat, name="ticking", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def requested(self) -> str:
        """Returns the supervisor's request: "" (continue), "pause" or "cancel"."""
        return self._requested

    def _write(self, data: bytes) -> None:
        assert self._event_fd is not None  # noqa: S101
        with self._lock:
            view = memoryview(data)
            try:
                while view:
                    view = view[os.write(self._event_fd, view) :]
            except BrokenPipeError:
                os._exit(1)

    def _watch(self, control_fd: int) -> None:
        with open(control_fd, encoding="ascii") as lines:
            for line in lines:
                word = line.strip()
                if self._on_line is not None:
                    self._on_line(word)
                # A pause that comes after a cancel must not undo it.
                if word in ("pause", "cancel") and self._requested != "cancel":
                    self._requested = word
        os._exit(1)


def die_with_parent() -> None:
    """Makes the kernel kill this process when the thread that started it ends (Linux; elsewhere the pipe ends it)."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_child(
    main: Callable[[EventSink, Path], Message | None], on_line: Callable[[str], None] | None = None
) -> NoReturn:
    """Runs a child from start to exit: `python -m services.<x>.worker input.json`.

    `main` gets the sink and the path of the input file. It returns the stage's result (PreflightResult, TrainingResult,
    EvaluationResult, ExportResult or a StageCompleted), or None if it has emitted an ending event itself. An exception
    becomes the ending event: a CallerFault is an error of the user, Paused and Cancelled release the attempt, any other
    is an error of the system, with its traceback on stderr.

    `on_line` gets the lines of the control pipe, from a thread.

    The process then exits at once, without Python's shutdown: that waits for threads, and releases devices that may no
    longer respond.
    """
    die_with_parent()
    faulthandler.enable()
    sink = EventSink.open(on_line)
    if len(sys.argv) != 2:
        module = sys.modules["__main__"].__spec__
        sys.exit(f"usage: python -m {module.parent if module else Path(sys.argv[0]).name} input.json")
    if not Path(sys.argv[1]).is_file():
        sys.exit(f"no such file: {sys.argv[1]}")
    status = 0
    try:
        sink.emit(_run_main(sink, main))
    except _AlreadyEnded:
        pass
    except KeyboardInterrupt:
        status = 130
    except Exception as error:  # noqa: BLE001 - becomes the event that ends the attempt
        status = 1
        _clear_frames(error)
        sink.emit(failure_of(error))
        if not isinstance(error, CallerFault):
            with contextlib.suppress(MemoryError):
                traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _clear_frames(error: BaseException | None) -> None:
    """Frees objects that the failed calls still hold: without memory not even the message can be built."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


class _AlreadyEnded(Exception):
    pass


def _run_main(sink: EventSink, main: Callable[[EventSink, Path], Message | None]) -> Message:
    try:
        result = main(sink, Path(sys.argv[1]))
    except Paused:
        return event_pb2.StageReleased(reason="PAUSED")
    except Cancelled:
        return event_pb2.StageReleased(reason="CANCELLED")
    if sink.ended:
        raise _AlreadyEnded
    if result is None:
        raise RuntimeError("the worker returned no result")
    if isinstance(result, event_pb2.StageCompleted):
        return result
    completed = event_pb2.StageCompleted()
    getattr(completed, _RESULTS[result.DESCRIPTOR.full_name]).CopyFrom(result)
    getattr(completed, _RESULTS[result.DESCRIPTOR.full_name]).SetInParent()
    return completed


def failure_of(error: BaseException) -> event_pb2.StageFailed:
    """Builds the StageFailed of an exception, shortened to fit into an event."""
    failed = event_pb2.StageFailed(fault=fine_tuning_job_pb2.FAULT_SYSTEM_ERROR)
    if isinstance(error, CallerFault):
        failed.fault = fine_tuning_job_pb2.FAULT_USER_ERROR
        failed.reason = _cut(error.reason, 200)
        failed.message = _cut(error.message, 4096)
        failed.advice = _cut(error.advice, 2048)
        for violation in error.violations[:50]:
            if failed.ByteSize() > _VIOLATIONS_BYTES:
                break
            failed.violations.add(field=_cut(violation.field, 500), description=_cut(violation.description, 1500))
        if (listed := len(failed.violations)) < len(error.violations):
            failed.message += f" ({len(error.violations)} violations; the first {listed} are listed)"
        return failed
    if isinstance(error, SystemFault):
        failed.reason = _cut(error.reason, 200)
        failed.message = _cut(error.message, 4096)
        failed.advice = _cut(error.advice, 2048)
        return failed
    failed.message = _cut(f"{type(error).__name__}: {error}", 4096)
    if reason := out_of_memory.reason_of(error):
        failed.reason = reason
        failed.advice = out_of_memory.ADVICE
    elif isinstance(error, EventTooLarge):
        failed.reason = "EVENT_TOO_LARGE"
        failed.advice = "This is a bug of the worker; please report it with its last output."
    else:
        failed.reason = "CRASHED"
        failed.advice = SEE_LAST_OUTPUT
    return failed


def _cut(text: str, limit_bytes: int) -> str:
    """Returns the beginning of a text, at most `limit_bytes` of UTF-8."""
    return text.encode(errors="replace")[:limit_bytes].decode(errors="ignore")


def _format_event(event: event_pb2.Event) -> str:
    kind = event.WhichOneof("payload") or "?"
    payload: Message = getattr(event, kind)
    moment = event.event_time.ToDatetime().strftime("%H:%M:%S")
    fields = []
    for field, value in payload.ListFields():
        if field.enum_type:
            text = field.enum_type.values_by_number[value].name
        elif isinstance(value, float):
            text = f"{value:.5g}"
        elif isinstance(value, (str, int)):
            text = str(value)
        else:
            text = " ".join(str(value).split())
        fields.append(f"{field.name}={text[:400]}")
    return f"{moment} {kind:<15} {'  '.join(fields)}"
