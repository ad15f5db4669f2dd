"""Endings of the files that can be read, shared by the code that accepts files and the code that reads them."""

from engine.errors import JobError, Violation

KINDS = ("jsonl", "ndjson", "json", "csv", "tsv", "txt", "parquet")
COMPRESSIONS = {"gz": "gzip", "zst": "zstd"}

ENDINGS = (*KINDS, *(f"{kind}.{ending}" for kind in KINDS if kind != "parquet" for ending in COMPRESSIONS))
"""Every accepted ending, without its first dot. Parquet compresses itself; compressed again, it could not be read in
parts."""

QUESTION_ENDINGS = ("jsonl", "ndjson", "json")
"""Endings of files of critical questions, which are JSON Lines."""


def ending_of(filename: str) -> str | None:
    """Returns the accepted ending of a file name, in lower case; None if it has none."""
    parts = filename.lower().split(".")[1:]
    for ending in (".".join(parts[-2:]), *parts[-1:]):
        if ending in ENDINGS:
            return ending
    return None


def check_file(filename: str, size_bytes: int | None = None, field: str = "") -> str:
    """Returns the accepted ending of a file. `field` names the file in the violation.

    Raises JobError: UNSUPPORTED_FILE for another ending, EMPTY_FILE if size_bytes is 0.
    """
    ending = ending_of(filename)
    if ending is None:
        kinds, packed = (", ".join(f".{each}" for each in listed) for listed in (KINDS, COMPRESSIONS))
        message = f"{filename} has none of the supported endings: {kinds}; all but .parquet also with {packed}."
        raise _refused("UNSUPPORTED_FILE", message, "Rename the file so that its ending names its format.", field)
    if size_bytes == 0:
        raise _refused("EMPTY_FILE", f"{filename} is empty.", "Provide a file that has rows.", field)
    return ending


def is_adapter(filename: str) -> bool:
    """Returns True for the name of an uploaded adapter, which is no file of rows."""
    return filename.lower().endswith(".safetensors")


def check_upload(filename: str, size_bytes: int | None = None, field: str = "") -> None:
    """Checks a file that is uploaded: rows or an adapter. Raises what `check_file` raises."""
    if not is_adapter(filename):
        check_file(filename, size_bytes, field)
    elif size_bytes == 0:
        raise _refused("EMPTY_FILE", f"{filename} is empty.", "Provide an adapter that has weights.", field)


def _refused(reason: str, message: str, advice: str, field: str) -> JobError:
    return JobError(reason, message, advice, [Violation(field, message)] if field else [])
