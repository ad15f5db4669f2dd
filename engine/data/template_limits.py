"""Limits the time and memory of templates that callers write; other work waits for their process."""

import math
import signal
import sys
import threading
import time
from typing import Any

from engine.data.memory_limit import memory_limit
from engine.errors import JobError, LimitExceeded, encodable

MAX_STEPS = 1_000_000
"""Maximum executed lines of the compiled template for one row. A count ends at the same row on every machine."""
MAX_SECONDS = 5.0
"""Maximum CPU time for one row, for templates whose steps are slow."""
GRACE_SECONDS = 5.0
"""Time after MAX_SECONDS until a process that cannot end its template is killed."""
_MAX_BYTES = 512 * 1024 * 1024
"""Memory that a template may allocate for one row."""
CPU_LIMIT = signal.SIGVTALRM
"""The signal that kills a process whose template cannot be stopped in any other way."""
TEMPLATE_EXCEEDED = "TEMPLATE_EXCEEDED"
"""Reason of the JobError of a template that exceeds a limit: it would exceed it for every other row."""
TEMPLATE_TOO_SLOW = "TEMPLATE_TOO_SLOW"
_FILE = "<template>"
_MAX_SAID = 500


class TemplateExceeded(BaseException):
    """The template takes too long, writes too much, or uses too much memory. Not an Exception, because Jinja catches
    those while it folds constants, and evaluates the expression later."""


# A class, like limited_time: a signal that arrives while a generator is being left would keep its limits.
class limited_steps:
    """Limits memory and CPU time, and counts the steps of templates, which takes longer than most templates."""

    def __enter__(self) -> None:
        self._steps = 0
        # Signals reach the main thread only.
        main = threading.get_ident() == threading.main_thread().ident
        self._deadline = math.inf if main else time.monotonic() + MAX_SECONDS
        self._traced = sys.gettrace()
        self._memory, self._time = limited_memory(), limited_time()
        self._memory.__enter__()
        self._time.__enter__()
        sys.settrace(self._enter)

    def __exit__(self, *exception: Any) -> None:
        try:
            self._time.__exit__(*exception)
        finally:
            sys.settrace(self._traced)
            self._memory.__exit__(*exception)

    def _enter(self, frame: Any, event: str, argument: Any) -> Any:
        return self._count(frame, event, argument) if frame.f_code.co_filename == _FILE else None

    def _count(self, _frame: Any, _event: str, _argument: Any) -> Any:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise TemplateExceeded(f"it takes more than {MAX_STEPS:,} steps")
        if limited_time.exceeded or time.monotonic() > self._deadline:
            raise TemplateExceeded(f"it takes more than {MAX_SECONDS:g} seconds")
        return self._count


ROW_SECONDS = 0.001
"""CPU time per use of a template that does not count against the limit of a process: long data takes long. The clock of
the limit has a resolution of 4 ms, so about as much is not counted either."""


# A class with a permanent signal handler, not a generator: it runs for each conversation and may cost 1% at most.
class limited_time:
    """Raises TemplateExceeded in its block after MAX_SECONDS of CPU time. If a single operation of the interpreter,
    which handles no signals, lasts GRACE_SECONDS longer, CPU_LIMIT kills the process. Has no effect outside the main
    thread.

    Also counts the CPU time of all blocks of the process. Raises LimitExceeded("TEMPLATE_TOO_SLOW") above
    `total_seconds`, and ROW_SECONDS for each block: many rows just below their own limit would take hours."""

    total_seconds = math.inf
    exceeded = False
    """True once MAX_SECONDS have passed in the current block. The exception may be lost, where Python ignores it."""
    _ready = False
    _running = False
    _used = 0.0
    _uses = 0

    def __enter__(self) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        if not limited_time._ready:
            signal.signal(signal.SIGPROF, _end)
            signal.signal(CPU_LIMIT, signal.SIG_DFL)
            limited_time._ready = True
        limited_time._running, limited_time.exceeded = True, False
        signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS + GRACE_SECONDS)
        # Repeated each second: an exception raised inside a finalizer or a callback of the garbage collector is lost.
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS, 1.0)

    def __exit__(self, *_: object) -> None:
        if limited_time._running and threading.get_ident() == threading.main_thread().ident:
            limited_time._running = limited_time.exceeded = False
            left = signal.setitimer(signal.ITIMER_PROF, 0)[0]
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            limited_time._uses += 1
            limited_time._used += max(MAX_SECONDS - left, 0.0)
            if limited_time._used > limited_time.total_seconds + ROW_SECONDS * limited_time._uses:
                raise _too_slow(limited_time._used, limited_time._uses)


def _end(_signal: int, frame: Any) -> None:
    # The signal may arrive after the template has ended. Raised in __exit__, the exception would leave the timers on,
    # and they would end the process later.
    if limited_time._running and frame.f_code not in _LEAVING:
        limited_time.exceeded = True
        raise TemplateExceeded(f"it takes more than {MAX_SECONDS:g} seconds")


_LEAVING = {limited_time.__exit__.__code__, limited_steps.__exit__.__code__}


def _too_slow(used: float, uses: int) -> LimitExceeded:
    allowed = f"{limited_time.total_seconds:g} seconds and {ROW_SECONDS * 1000:g} ms per row"
    return LimitExceeded(
        TEMPLATE_TOO_SLOW,
        f"The templates took {used:.1f} seconds of processor time for the first {uses:,} rows; {allowed} are allowed.",
        "Simplify the row template or chat_template.",
        "FTF_PROBE_MAX_TEMPLATE_SECONDS",
    )


def ends_work(error: JobError) -> bool:
    """Returns True for an error of one row that every other row would raise too, or after which no row may be read."""
    return error.reason == TEMPLATE_EXCEEDED or isinstance(error, LimitExceeded)


def killed_by_template() -> JobError:
    """Returns the error for a process that CPU_LIMIT killed."""
    said = f"one of its steps takes more than {MAX_SECONDS + GRACE_SECONDS:g} seconds"
    return JobError(TEMPLATE_EXCEEDED, f"A template of the job does not end: {said}.", "Correct the template.")


def limited_memory(*, measure: bool = True) -> memory_limit:
    """Returns a context manager that limits memory by MemoryError; `measure` is explained at `memory_limit`."""
    return memory_limit(_MAX_BYTES, measure=measure)


def limit_of(error: BaseException) -> str:
    """Returns a message that names the limit that a TemplateExceeded, MemoryError or RecursionError reports."""
    if isinstance(error, RecursionError):
        # The values of a row are never nested deeply enough to be the cause.
        return "it calls itself without end"
    return str(error) or "it needs too much memory"


def failure_text(error: BaseException) -> str:
    """Returns what the error of a template says, shortened; its type if it says nothing."""
    return encodable(str(error).rstrip("."))[:_MAX_SAID] or type(error).__name__
