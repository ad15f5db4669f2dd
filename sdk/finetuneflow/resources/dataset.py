"""Uploaded files of rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetuneflow.resources.convert import Resource


@dataclass(frozen=True, kw_only=True)
class Dataset(Resource):
    """An uploaded file of rows. Immutable."""

    id: str
    """`ds_` followed by 26 characters; ids sort by creation time."""
    display_name: str
    """Display name. Default: the file's name."""
    filename: str
    """Name of the uploaded file without its folders. Its extension determines how the file is read: jsonl, ndjson,
    json, csv, tsv or txt, each optionally followed by .gz or .zst, and parquet. A .json file is an array of objects
    (at the top level, or as the only value of one object), or a sequence of objects. A .txt file is running text,
    split into rows of at most 2 bytes per token of max_length (but at least 64 bytes), at a blank line, the end of a
    line, or a space."""
    size_bytes: int
    """Size of the file in bytes."""
    sha256: str
    """SHA-256 of the file, in hexadecimal."""
    create_time: datetime | None
    """Time at which the upload completed."""
