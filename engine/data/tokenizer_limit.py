"""Limits the processor time of a base model's tokenizer, whose regular expressions come from the model."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import JobError, Violation

TOKENIZER_LIMIT = signal.SIGPROF
"""The signal that ends a process whose tokenizer takes too long."""
BASE_SECONDS = 20.0
BYTES_PER_SECOND = 100_000
"""Speed that every tokenizer exceeds; usual ones encode several million bytes per second."""


@contextmanager
def limited_tokenizer(num_characters: int) -> Iterator[None]:
    """Ends the process by TOKENIZER_LIMIT if its block takes far longer than encoding that many characters does.

    A regular expression runs outside the interpreter, so that nothing else can end it. Raises JobError("BAD_TOKENIZER")
    if the tokenizer fails. Limits no time outside the main thread.
    """
    in_main_thread = threading.get_ident() == threading.main_thread().ident
    if in_main_thread:
        handler = signal.signal(TOKENIZER_LIMIT, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, BASE_SECONDS + num_characters / BYTES_PER_SECOND)
    try:
        yield
    except BaseException as error:
        # A tokenizer's panic is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise bad_tokenizer(f"fails: {str(error)[:200]}") from error
    finally:
        if in_main_thread:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(TOKENIZER_LIMIT, handler)


def bad_tokenizer(problem: str) -> JobError:
    """Returns the error for a tokenizer that cannot be used."""
    message = f"The base model's tokenizer (tokenizer.json) {problem}."
    return JobError("BAD_TOKENIZER", message, "Use another base model.", [Violation("spec.base_model", message)])


def endless_tokenizer() -> JobError:
    """Returns the error for a tokenizer that takes too long to encode texts."""
    return bad_tokenizer(
        "takes far longer to encode texts than any tokenizer does; its regular expressions may not end"
    )
