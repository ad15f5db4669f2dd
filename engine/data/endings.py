"""Endings of the files that can be read, shared by the code that accepts files and the code that reads them."""

KINDS = ("jsonl", "ndjson", "json", "csv", "tsv", "txt", "parquet")
COMPRESSIONS = {"gz": "gzip", "zst": "zstd"}

ENDINGS = (*KINDS, *(f"{kind}.{ending}" for kind in KINDS if kind != "parquet" for ending in COMPRESSIONS))
"""Every accepted ending, without its first dot. Parquet compresses itself; compressed again, it could not be read in
parts."""


def ending_of(filename: str) -> str | None:
    """Returns the accepted ending of a file name, in lower case; None if it has none."""
    parts = filename.lower().split(".")[1:]
    for ending in (".".join(parts[-2:]), *parts[-1:]):
        if ending in ENDINGS:
            return ending
    return None
