"""What a template that a caller wrote may take: it runs in a process that others wait for."""

import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.errors import JobError

MAX_STEPS = 1_000_000
"""Lines of the compiled template that run for one row: the same template ends at the same row on every machine."""
MAX_SECONDS = 5.0
"""For one row, where single steps are slow."""
GRACE_SECONDS = 5.0
"""Then the process ends that could not end its template."""
_MAX_BYTES = 512 * 1024 * 1024
"""Memory that one row's template may take beyond what the process has."""
CPU_LIMIT = signal.SIGVTALRM
"""The signal by which a process dies whose template cannot be ended in any other way."""
TEMPLATE_EXCEEDED = "TEMPLATE_EXCEEDED"
"""Reason of the JobError that ends a job whose template exceeds a limit: it would do so with every other row."""
_FILE = "<template>"


class TemplateExceeded(BaseException):
    """The template would take too long, write too much, or use too much memory. No Exception: Jinja takes those, where
    it computes constants while it compiles, for a sign to compute them later."""


@contextmanager
def limited() -> Iterator[None]:
    """`limited_time`, and MemoryError ends what takes too much memory."""
    with _memory_limit(), limited_time():
        yield


@contextmanager
def limited_steps() -> Iterator[None]:
    """`limited`, and the steps of templates are counted, which takes longer than most of them."""
    deadline = time.monotonic() + MAX_SECONDS
    steps = 0

    def count(_frame: Any, _event: str, _argument: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > MAX_STEPS:
            raise TemplateExceeded(f"it takes more than {MAX_STEPS:,} steps")
        if time.monotonic() > deadline:
            raise TemplateExceeded(f"it takes more than {MAX_SECONDS:g} seconds")
        return count

    def enter(frame: Any, event: str, argument: Any) -> Any:
        return count(frame, event, argument) if frame.f_code.co_filename == _FILE else None

    traced = sys.gettrace()
    with limited():
        sys.settrace(enter)
        try:
            yield
        finally:
            sys.settrace(traced)


# No generator, and a handler that stays: what is done for every conversation is to cost no more than a hundredth of it.
class limited_time:
    """Ends what runs inside after MAX_SECONDS of CPU time, by TemplateExceeded; a comparison or conversion in the
    interpreter itself, which hears no signal, GRACE_SECONDS later with the process: of CPU_LIMIT it dies. Only in the
    main thread."""

    _ready = False
    _running = False

    def __enter__(self) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        if not limited_time._ready:
            signal.signal(signal.SIGPROF, _end)
            signal.signal(CPU_LIMIT, signal.SIG_DFL)
            limited_time._ready = True
        limited_time._running = True
        signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS + GRACE_SECONDS)
        # Again each second: an exception that falls into a finalizer is lost.
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS, 1.0)

    def __exit__(self, *_: object) -> None:
        if limited_time._running and threading.get_ident() == threading.main_thread().ident:
            limited_time._running = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _end(_signal: int, _frame: Any) -> None:
    # One that was on its way when the template ended comes too late.
    if limited_time._running:
        raise TemplateExceeded(f"it takes more than {MAX_SECONDS:g} seconds")


def killed_by_template() -> JobError:
    """What became of a process that died of CPU_LIMIT."""
    said = f"one of its steps takes more than {MAX_SECONDS + GRACE_SECONDS:g} seconds"
    return JobError(TEMPLATE_EXCEEDED, f"A template of the job does not come to an end: {said}.", "Correct it.")


@contextmanager
def _memory_limit() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    allowed = _address_space() + _MAX_BYTES
    if soft != resource.RLIM_INFINITY:
        allowed = min(allowed, soft)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - for every row
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        # Without /proc the limits of steps and time remain.
        return 1 << 48


def limit_of(error: BaseException) -> str:
    """Which limit a TemplateExceeded, MemoryError or RecursionError is about."""
    if isinstance(error, RecursionError):
        # The values of a row are not nested deeply enough to be the reason.
        return "it calls itself without end"
    return str(error) or "it needs too much memory"
