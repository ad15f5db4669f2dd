"""SHA-256 of a file during its transfer, computed by a thread that reads the bytes already present."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_BUFFER_BYTES = 1 << 20


class Hashing:
    """Computes the SHA-256 of a file that may still be growing. Use it in a `with` statement, which ends the thread."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        """Starts to hash the first `size_bytes` of the file; `grown_to` adds more."""
        self._file = path.open("rb", buffering=0)
        self._grown_to = size_bytes
        self._hashed = 0
        self._hash = hashlib.sha256()
        self._failure: OSError | None = None
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="sha256", daemon=True)
        self._thread.start()

    def grown_to(self, size_bytes: int) -> None:
        """Tells that the file now has `size_bytes`."""
        with self._changed:
            self._grown_to = size_bytes
            self._changed.notify_all()

    def hexdigest(self) -> str:
        """Waits for the thread and returns the SHA-256 of all bytes. Raises OSError, also if the file was truncated."""
        with self._changed:
            self._changed.wait_for(lambda: self._hashed == self._grown_to or self._failure or self._ended)
            if self._failure is not None:
                raise self._failure
            return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()
        self._file.close()

    def _run(self) -> None:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._hashed < self._grown_to or self._ended)
                if self._ended:
                    return
                size = min(self._grown_to - self._hashed, _BUFFER_BYTES)
            try:
                count = self._file.readinto(buffer[:size])
                if not count:
                    raise OSError(
                        f"{self._file.name} ends after {self._hashed} bytes: it was truncated while being read"
                    )
            except OSError as error:
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            self._hash.update(buffer[:count])
            with self._changed:
                self._hashed += count
                self._changed.notify_all()
