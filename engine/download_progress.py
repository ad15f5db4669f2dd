"""Progress of a download, measured by the size of its unfinished files."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def report_progress(folder: Path, on_progress: Callable[[int], None] | None) -> Iterator[None]:
    """Reports the bytes added each second to the unfinished copies of `folder`, also those of other processes.

    Reports nothing if the folder is complete already.
    """
    if on_progress is None or folder.is_dir():
        yield
        return
    report, done = on_progress, threading.Event()

    def watch() -> None:
        before = 0
        while not done.wait(1.0):
            size = sum(
                _size(file) for partial in folder.parent.glob(f".{folder.name}.*/") for file in partial.rglob("*")
            )
            if size > before:
                report(size - before)
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
