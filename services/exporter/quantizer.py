"""Quantizes GGUF files with llama.cpp's library, in a process of its own, which a defect of the library may end.

`python -m services.exporter.quantizer FOLDER` checks the library in a folder;
`python -m services.exporter.quantizer FOLDER SOURCE TARGET TYPE` writes a file of that type. Standard library only.
"""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any, Final

FILE_TYPES: Final = {
    "q4_0": 2,
    "q5_0": 8,
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q3_k_l": 13,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
}
"""Numbers of the types that the library makes (`llama_ftype`)."""
UNUSABLE: Final = 3
"""Exit status if the library cannot be used; the last line of the output says why."""
_RELEASE: Final = ("0.5.0-dev", "0.25.1", "0ad4a86")
"""Versions of llama.cpp and ggml, and ggml's commit. Each release may change the struct and the numbers above."""
_LIBRARIES: Final = (("libllama.v0.5.0.so", "libggml.v0.5.0.so"), ("libllama.so", "libggml.so"))


class LibraryUnusable(Exception):
    """The library is missing, cannot be loaded, or is another release."""


class _Parameters(ctypes.Structure):
    """`llama_model_quantize_params`."""

    _fields_ = (
        ("num_threads", ctypes.c_int32),
        ("file_type", ctypes.c_int),
        ("output_tensor_type", ctypes.c_int),
        ("token_embedding_type", ctypes.c_int),
        ("allow_requantize", ctypes.c_bool),
        ("quantize_output_tensor", ctypes.c_bool),
        ("only_copy", ctypes.c_bool),
        ("pure", ctypes.c_bool),
        ("keep_split", ctypes.c_bool),
        ("dry_run", ctypes.c_bool),
        ("importance_matrix", ctypes.c_void_p),
        ("metadata_overrides", ctypes.c_void_p),
        ("tensor_type_overrides", ctypes.c_void_p),
        ("pruned_layers", ctypes.c_void_p),
    )


_DEFAULTS: Final = (0, 7, 43, 43, False, True, False, False, False, False, None, None, None, None)


class Quantizer:
    """The library of a folder."""

    def __init__(self, folder: Path) -> None:
        """Raises LibraryUnusable."""
        self._folder = folder
        found = next((names for names in _LIBRARIES if (folder / names[0]).is_file()), None)
        if found is None:
            raise LibraryUnusable(f"there is no {_LIBRARIES[0][0]} in {folder}")
        try:
            self._llama, self._ggml = (ctypes.CDLL(str(folder / name)) for name in found)
            # Those of ggml are in a library that both depend on.
            release = tuple(self._text(name) for name in ("llama_version", "ggml_version", "ggml_commit"))
        except (OSError, AttributeError) as error:
            raise LibraryUnusable(f"{found[0]} in {folder} cannot be loaded: {error}") from error
        if release != _RELEASE:
            raise LibraryUnusable(f"{found[0]} in {folder} is {_of(release)}; {_of(_RELEASE)} is needed")
        defaults = self._defaults()
        values = tuple(getattr(defaults, name) for name, _ in _Parameters._fields_)
        if values != _DEFAULTS:
            raise LibraryUnusable(f"{found[0]} in {folder} has other defaults than its release: {values}")

    def quantize(self, source: Path, target: Path, type_: str, num_threads: int) -> bool:
        """Writes a file of that type. Returns False if it cannot; the library has then printed why.

        `num_threads` is at least 1; 0: one for each core.
        """
        self._ggml.ggml_backend_load_all_from_path(os.fsencode(self._folder))
        parameters = self._defaults()
        parameters.num_threads = num_threads
        parameters.file_type = FILE_TYPES[type_]
        call = self._llama.llama_model_quantize
        call.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Parameters))
        call.restype = ctypes.c_uint32
        return bool(call(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters)) == 0)

    def _text(self, function: str) -> str:
        call = getattr(self._llama, function)
        call.restype = ctypes.c_char_p
        return bytes(call()).decode()

    def _defaults(self) -> Any:
        call = self._llama.llama_model_quantize_default_params
        call.restype = _Parameters
        return call()


def _of(release: tuple[str, ...]) -> str:
    return "llama.cpp {} with ggml {} ({})".format(*release)


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, UNUSABLE, or 1 if the file could not be written."""
    folder, *files = arguments
    try:
        quantizer = Quantizer(Path(folder))
    except LibraryUnusable as error:
        sys.stderr.write(f"{error}\n")
        return UNUSABLE
    if not files:
        return 0
    source, target, type_ = files
    threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    return 0 if quantizer.quantize(Path(source), Path(target), type_, threads) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
