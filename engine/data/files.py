"""Reads files of rows one row at a time, so that a file may be larger than memory.

| ending        | rows                                                                                       |
|---------------|--------------------------------------------------------------------------------------------|
| jsonl, ndjson | one JSON object a line                                                                     |
| json          | an array of objects, alone or as an object's only value; or objects one after the other    |
| csv, tsv      | the lines below a header; the delimiter of a csv is named by `sep=` or counted             |
| txt           | running text in pieces of whole lines, at most 2 bytes per token of `max_length` each      |
| parquet       | its rows                                                                                   |

All except Parquet may be compressed, as .gz or .zst. Text is UTF-8, with or without a byte-order mark.
"""

from collections.abc import Iterator
from pathlib import Path

from engine.data.csv_files import read_csv
from engine.data.endings import check_file
from engine.data.json_files import read_json, read_json_lines, refuse_other_json
from engine.data.parquet_files import read_parquet
from engine.data.rows import Row, RowProblem
from engine.data.streams import open_rows
from engine.data.text_files import read_text

BYTES_PER_TOKEN = 2
"""Almost no text has fewer bytes per token, so a piece is almost never truncated, whatever the tokenizer."""


def read_rows(path: Path, max_length: int = 2048) -> Iterator[Row | RowProblem]:
    """Yields the rows of a file, and the problems of rows that cannot be read, in order. `max_length` (tokens) decides
    how running text is divided.

    Raises JobError: UNSUPPORTED_FILE for an unknown ending; UNREADABLE_FILE, DECOMPRESSION_BOMB or BAD_HEADER for a
    file that cannot be read at all.
    """
    ending = check_file(path.name)
    kind = ending.partition(".")[0]
    if kind == "parquet":
        yield from read_parquet(path)
        return
    with open_rows(path, ending) as file:
        match kind:
            case "json":
                yield from read_json(file)
            case "csv":
                yield from read_csv(file, path.name)
            case "tsv":
                yield from read_csv(file, path.name, "\t")
            case "txt":
                yield from read_text(file, max_length * BYTES_PER_TOKEN)
            case _:
                refuse_other_json(file, path.name)
                yield from read_json_lines(file)
