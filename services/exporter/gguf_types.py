"""Types of GGUF files that this exporter can make."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Final

from engine.config.job import CONVERTED_TYPES, LIBLLAMA_PACKAGE
from engine.errors import SystemFailure
from services.exporter.quantizer import FILE_TYPES

_log = logging.getLogger(__name__)

SETTING: Final = "FTF_EXPORTER_LIBLLAMA"
INSTALL: Final = f"npm install --prefix DIR {LIBLLAMA_PACKAGE}"
_CHECK_SECONDS: Final = 60


class GgufTypes:
    """The types that llama.cpp's converter makes, and with its library those that the library makes."""

    def __init__(self, folder: Path | None) -> None:
        """`folder` has the library. None: there is none."""
        self.folder = None if folder is None else folder.resolve()
        self.names: list[str] = list(CONVERTED_TYPES)
        """Without those of the library until `read`."""
        self.problem = f"{SETTING} is not set"
        """Why those of the library are missing; empty if they are not."""

    def read(self) -> None:
        """Checks the library, in a process of its own. Logs why it cannot be used, if so."""
        if self.folder is None:
            return
        self.problem = _problem(self.folder)
        if self.problem:
            _log.error("%s: %s; no k-quants can be made", SETTING, self.problem)
        else:
            self.names = [*CONVERTED_TYPES, *FILE_TYPES]
            _log.info("k-quants are made by the library in %s", self.folder)


def quantizer_missing(problem: str) -> SystemFailure:
    """Returns the failure of an exporter that cannot use the library."""
    return SystemFailure(
        "GGUF_QUANTIZER_MISSING",
        f"This exporter cannot make k-quants: {problem}.",
        f"Ask the operator to run {INSTALL} there, and to set {SETTING} to the folder with its libraries, the same for "
        "every exporter. Or export f16 or q8_0.",
    )


def _problem(folder: Path) -> str:
    argv = [sys.executable, "-m", "services.exporter.quantizer", str(folder)]
    try:
        checked = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=_CHECK_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"the library in {folder} was not loaded within {_CHECK_SECONDS} s"
    if checked.returncode == 0:
        return ""
    lines = checked.stderr.strip().splitlines()
    return lines[-1] if lines else f"the library in {folder} ended its process with status {checked.returncode}"
