"""The names of files that can be read: their endings, in one place for whoever accepts a file and whoever reads it."""

KINDS = ("jsonl", "ndjson", "json", "csv", "tsv", "txt", "parquet")
COMPRESSIONS = {"gz": "gzip", "zst": "zstd"}

ENDINGS = (*KINDS, *(f"{kind}.{ending}" for kind in KINDS if kind != "parquet" for ending in COMPRESSIONS))
"""Every accepted ending, without its first dot. Parquet packs itself; packed again it could not be read in parts."""


def ending_of(filename: str) -> str | None:
    """The accepted ending of a file's name, in lower case; None when it has none of them."""
    parts = filename.lower().split(".")[1:]
    for ending in (".".join(parts[-2:]), *parts[-1:]):
        if ending in ENDINGS:
            return ending
    return None
