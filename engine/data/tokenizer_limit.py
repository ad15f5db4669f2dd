"""Limits the processor time and memory of a base model's tokenizer, whose regular expressions and replacements come
from the model."""

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from engine.data.memory_limit import memory_limit
from engine.errors import JobError, Violation

TOKENIZER_LIMIT = signal.SIGPROF
"""The signal that ends a process whose tokenizer takes too long."""
BASE_SECONDS = 20.0
BYTES_PER_SECOND = 100_000
"""Speed that every tokenizer exceeds; usual ones encode several million bytes per second."""


BASE_BYTES = 2 << 30
BYTES_PER_CHARACTER = 1024
"""Memory that no usual tokenizer needs for a character: it takes 150 bytes, or 250 for each character that its
normaliser makes of one."""
ABORTED = int(signal.SIGABRT)
"""Exit status of a process whose tokenizer ended it, which happens when it gets no more memory."""


@contextmanager
def limited_tokenizer(num_characters: int) -> Iterator[None]:
    """Limits its block to what encoding that many characters takes at most: time and memory. A tokenizer runs outside
    the interpreter, so that beyond a limit only the process can be ended: by TOKENIZER_LIMIT, or with status ABORTED.

    Raises JobError("BAD_TOKENIZER") if the tokenizer fails. Limits nothing outside the main thread.
    """
    try:
        if threading.get_ident() != threading.main_thread().ident:
            yield
            return
        with _limited_time(num_characters), _abort_exits(), _limited_memory(num_characters):
            yield
    except MemoryError as error:
        raise aborted_tokenizer() from error
    except BaseException as error:
        # A tokenizer's panic is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise bad_tokenizer(f"fails: {str(error)[:200]}") from error


def _limited_memory(num_characters: int) -> memory_limit:
    return memory_limit(BASE_BYTES + num_characters * BYTES_PER_CHARACTER)


@contextmanager
def _limited_time(num_characters: int) -> Iterator[None]:
    handler = signal.signal(TOKENIZER_LIMIT, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, BASE_SECONDS + num_characters / BYTES_PER_SECOND)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(TOKENIZER_LIMIT, handler)


@contextmanager
def _abort_exits() -> Iterator[None]:
    """Ends the process with status ABORTED instead of SIGABRT, by which other libraries' aborts end it."""
    # Python runs its own handlers too late, so the handler is a function of C: _exit receives the signal's number.
    handler = _set_handler(signal.SIGABRT, ctypes.cast(_libc._exit, ctypes.c_void_p))
    try:
        yield
    finally:
        _set_handler(signal.SIGABRT, handler)


_libc = ctypes.CDLL(None)
_set_handler = _libc.signal
_set_handler.argtypes, _set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p


def bad_tokenizer(problem: str) -> JobError:
    """Returns the error for a tokenizer that cannot be used."""
    message = f"The base model's tokenizer (tokenizer.json) {problem}."
    return JobError("BAD_TOKENIZER", message, "Use another base model.", [Violation("spec.base_model", message)])


def endless_tokenizer() -> JobError:
    """Returns the error for a tokenizer that takes too long to encode texts."""
    return bad_tokenizer(
        "takes far longer to encode texts than any tokenizer does; its regular expressions may not end"
    )


def aborted_tokenizer() -> JobError:
    """Returns the error for a tokenizer that ended its process."""
    return bad_tokenizer("needs far more memory to encode texts than any tokenizer does; it may make them longer")
