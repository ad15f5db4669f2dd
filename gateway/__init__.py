"""The public API, and the process that serves it."""

import os
import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    # `python -m gateway` puts the working folder first: a psutil.py there would run in this process.
    _working_folder = sys.path.pop(0)
    if __path__ == [os.path.join(_working_folder, __name__)] and _working_folder not in sys.path:  # noqa: PTH118
        # It is the source checkout, which is not installed.
        sys.path.append(_working_folder)
