"""`train_rows.bin`, beside token shards: the source and the row number of each training row."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import numpy

from engine.config.job import JobConfig
from engine.data.block_tokenizer import TokenRows

_FILE: Final = "train_rows.bin"
_PAIR: Final = numpy.dtype([("source", "<u4"), ("row", "<u4")])


class RowNumberWriter:
    """Appends the numbers of rows in the order of the shard."""

    def __init__(self, file: IO[bytes], config: JobConfig) -> None:
        self._file = file
        self._index = {place: index for index, place in enumerate(_places(config))}

    @classmethod
    @contextmanager
    def open(cls, folder: Path, config: JobConfig) -> "Iterator[RowNumberWriter]":
        """Opens the file in a folder of shards."""
        with (folder / _FILE).open("wb") as file:
            yield cls(file, config)

    def write(self, rows: TokenRows) -> None:
        """Appends the numbers of rows of one source."""
        pairs = numpy.empty(len(rows.numbers), _PAIR)
        pairs["source"], pairs["row"] = self._index[rows.place], rows.numbers
        self._file.write(pairs.tobytes())


def row_names(folder: Path, config: JobConfig, indices: Iterable[int]) -> list[str]:
    """Returns names of rows of train/ by their index, such as `training_data[0] row 17`.

    In shards of a version that recorded none, they are `training row 17`, counted from 0 in the shard.
    """
    try:
        pairs = numpy.fromfile(folder / _FILE, _PAIR)
    except FileNotFoundError:
        return [f"training row {index}" for index in indices]
    places = _places(config)
    return [f"{places[pairs[index]['source']]} row {pairs[index]['row']}" for index in indices]


def _places(config: JobConfig) -> list[str]:
    if not config.phases:
        return [f"training_data[{index}]" for index in range(len(config.training_data))]
    return [
        f"phases[{number}].training_data[{index}]"
        for number, phase in enumerate(config.phases)
        for index in range(len(phase.training_data))
    ]
