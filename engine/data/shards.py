"""Writes and reads token shards: a folder of Arrow files, in the layout of `datasets.load_from_disk`."""

import json
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy

from engine.data.block_tokenizer import TokenRows

if TYPE_CHECKING:
    # The import takes seconds, and only readers need it.
    from datasets import Dataset

_FILE = "data-00000-of-00001.arrow"
_BATCH = 1000
"""Maximum rows per record batch; the trainer finds a row by searching the batches."""


class ShardWriter:
    """Appends rows to a shard as they arrive; rows that were written are not copied again."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """`fingerprint` identifies the content for the `datasets` library; it is the same for the same rows."""
        from datasets import Dataset, Features, List, Value, disable_progress_bars

        disable_progress_bars()
        features = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
        # The library writes all files of the folder; only the rows are replaced.
        Dataset.from_dict({"input_ids": [], "labels": []}, features).save_to_disk(str(folder))
        state = json.loads((folder / "state.json").read_text("utf-8"))
        state |= {"_data_files": [{"filename": _FILE}], "_fingerprint": fingerprint}
        (folder / "state.json").write_text(json.dumps(state, indent=2), "utf-8")

        import pyarrow

        self._schema: Any = features.arrow_schema
        self._file = (folder / _FILE).open("wb")
        self._writer: Any = pyarrow.ipc.new_stream(self._file, self._schema)

    def write(self, rows: TokenRows) -> None:
        """Appends rows."""
        import pyarrow

        offsets = numpy.zeros(len(rows.lengths) + 1, numpy.int32)
        numpy.cumsum(rows.lengths, out=offsets[1:])
        columns = [
            pyarrow.ListArray.from_arrays(offsets, pyarrow.array(values)) for values in (rows.input_ids, rows.labels)
        ]
        batch = pyarrow.RecordBatch.from_arrays(columns, schema=self._schema)
        for start in range(0, len(batch), _BATCH):
            self._writer.write_batch(batch.slice(start, _BATCH))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._writer.close()
        self._file.close()


def read_shards(folder: Path) -> "Dataset":
    """Returns the rows of a folder, mapped into memory.

    `datasets.load_from_disk` does the same, but reads the path as a URL, in which `::` separates a chain of URLs.
    """
    from datasets import Dataset, DatasetInfo
    from datasets.table import MemoryMappedTable, concat_tables

    state = json.loads((folder / "state.json").read_text("utf-8"))
    info = DatasetInfo.from_dict(json.loads((folder / "dataset_info.json").read_text("utf-8")))
    tables = [MemoryMappedTable.from_file(str(folder / one["filename"])) for one in state["_data_files"]]
    return Dataset(arrow_table=concat_tables(tables), info=info, fingerprint=state["_fingerprint"])


def first_rows(folder: Path, most: int) -> list[dict[str, list[int]]]:
    """Returns the first rows of a folder, at most `most`, without importing `datasets`, which takes seconds."""
    import pyarrow

    rows: list[dict[str, list[int]]] = []
    for one in json.loads((folder / "state.json").read_text("utf-8"))["_data_files"]:
        with pyarrow.memory_map(str(folder / one["filename"])) as source:
            for batch in pyarrow.ipc.open_stream(source):
                rows += batch.slice(0, most - len(rows)).to_pylist()
                if len(rows) == most:
                    return rows
    return rows
