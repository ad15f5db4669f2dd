"""A gateway whose wall clock can be set: `python -m tests.chaos.gateway OFFSET_FILE`.

The file holds seconds that are added to the time of day; the product knows nothing of it.
"""

import sys
import time
from pathlib import Path

_file = Path(sys.argv[1])
_time, _time_ns = time.time, time.time_ns


def _offset() -> float:
    try:
        return float(_file.read_text() or 0)
    except FileNotFoundError:
        return 0.0


def main() -> None:
    # Before anything that takes a reference of its own is imported.
    time.time = lambda: _time() + _offset()
    time.time_ns = lambda: _time_ns() + int(_offset() * 1e9)
    from gateway.__main__ import main as serve

    sys.argv = sys.argv[:1]
    serve()


if __name__ == "__main__":
    main()
