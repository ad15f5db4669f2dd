"""Reads files of rows, one row at a time, so that a file larger than memory can be trained on.

| ending        | rows                                                                                       |
|---------------|--------------------------------------------------------------------------------------------|
| jsonl, ndjson | one JSON object a line                                                                     |
| json          | an array of objects, alone or as an object's only value; or objects one after the other    |
| csv, tsv      | the lines below a header; the delimiter of a csv is the one its header has most of         |
| txt           | running text in packs of whole lines, each of at most two bytes per token of `max_length`  |
| parquet       | its rows                                                                                   |

All but Parquet may be packed once more, as .gz or .zst. Text is UTF-8, with or without a byte-order mark.
"""

from collections.abc import Iterator
from pathlib import Path

from engine.data.csv_files import read_csv
from engine.data.endings import KINDS, ending_of
from engine.data.json_files import read_json, read_json_lines, refuse_other_json
from engine.data.parquet_files import read_parquet
from engine.data.rows import Row, RowProblem
from engine.data.streams import open_rows
from engine.data.text_files import read_text
from engine.errors import JobError

_BYTES_PER_TOKEN = 2
"""Hardly any text has fewer: a pack of text is hardly ever cut, whatever the tokenizer."""


def read_rows(path: Path, max_length: int = 2048) -> Iterator[Row | RowProblem]:
    """Rows and unreadable rows of a file, in its order. `max_length` (tokens) decides how running text is packed.

    Raises JobError: UNSUPPORTED_FILE for another ending, and UNREADABLE_FILE, DECOMPRESSION_BOMB or BAD_HEADER for a
    file that is no good as a whole.
    """
    ending = ending_of(path.name)
    if ending is None:
        raise JobError(
            "UNSUPPORTED_FILE",
            f"{path.name} does not end as a file of rows does: {', '.join(f'.{kind}' for kind in KINDS)}.",
            "Give the file the ending of what is in it.",
        )
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
                yield from read_text(file, max_length * _BYTES_PER_TOKEN)
            case _:
                refuse_other_json(file, path.name)
                yield from read_json_lines(file)
