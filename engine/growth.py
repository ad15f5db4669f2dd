"""How much of a download has come, whoever downloads it."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def growth_told(folder: Path, on_progress: Callable[[int], None] | None) -> Iterator[None]:
    """Tells of what comes into the unfinished copies of a folder, which may be another process's."""
    if on_progress is None or folder.is_dir():
        yield
        return
    told, done = on_progress, threading.Event()

    def watch() -> None:
        before = 0
        while not done.wait(1.0):
            size = sum(
                _size(file) for partial in folder.parent.glob(f".{folder.name}.*/") for file in partial.rglob("*")
            )
            if size > before:
                told(size - before)
            before = size

    thread = threading.Thread(target=watch, name=f"fetch-{folder.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
