"""The beginnings of the files of a streamed corpus, which preflight keeps: of a file that it has read, nothing else is
needed any more, so the files need not all be on the disk at once.
"""

import contextlib
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from engine.config.job import JobConfig
from engine.data.blocks import Block, BlockSize, read_blocks
from engine.data.corpus_files import Scan, check_corpus_file, scan
from engine.data.requested_files import RequestedFiles
from engine.data.rows import Row

_BEGINNING_BYTES: Final = 128 << 10
_BEGINNINGS_BYTES: Final = 16 << 20
"""Bytes of all beginnings together, but at least _BEGINNING_BYTES of each file."""
_BLOCK: Final = BlockSize(num_bytes=_BEGINNING_BYTES, num_rows=32)


@dataclass(frozen=True)
class Beginning:
    """The beginning of one file."""

    scan: Scan
    """What reading the whole file told."""
    file_bytes: int
    """Size of the file, as it is stored."""
    num_bytes: int
    """Bytes of the text of its blocks."""
    kept: Path
    """File of its blocks, one after the other."""

    def blocks(self) -> Iterator[Block]:
        """Yields the blocks, the same ones each time."""
        # Written by this process, where no other one writes.
        with self.kept.open("rb") as file, contextlib.suppress(EOFError):
            while True:
                yield pickle.load(file)  # noqa: S301


class Beginnings:
    """The beginnings of the files of training_data, by dataset id."""

    def __init__(self, found: Mapping[str, Beginning]) -> None:
        self._found = found

    def __contains__(self, dataset: str) -> bool:
        return dataset in self._found

    def __getitem__(self, dataset: str) -> Beginning:
        return self._found[dataset]

    @property
    def num_bytes(self) -> int:
        """Bytes of the text of all of them."""
        return sum(one.num_bytes for one in self._found.values())

    def bytes_at_once(self, config: JobConfig) -> int:
        """Returns the size of the files that a training reads at once: the largest of each weight."""
        largest: dict[float, int] = {}
        for source in config.training_data:
            size = self[source.dataset].file_bytes
            largest[source.weight] = max(size, largest.get(source.weight, 0))
        return sum(largest.values())

    @classmethod
    def read(
        cls,
        config: JobConfig,
        sources: Mapping[str, Path],
        folder: Path,
        progress: Callable[[float], None],
        requests: Path | None = None,
    ) -> Self:
        """Reads each file to its end, one after the other, and keeps its beginning in `folder`, which need not exist.
        With `requests`, the files are asked for there, and none is needed again. `progress` is called with the fraction
        of the files while the work continues.

        Raises JobError: NOT_A_CORPUS, and those of files.
        """
        places = {source.dataset: f"training_data[{at}]" for at, source in reversed([*enumerate(config.training_data)])}
        names = list(dict.fromkeys(source.dataset for source in config.training_data))
        for name in names:
            check_corpus_file(sources[name], places[name])
        most = max(_BEGINNINGS_BYTES // len(config.training_data), _BEGINNING_BYTES)
        files = RequestedFiles.of_reader(sources, requests, "preflight")
        folder.mkdir(parents=True, exist_ok=True)
        found = {}
        for number, name in enumerate(names):

            def alive(done: float = number / len(names)) -> None:
                progress(done)

            def begin(path: Path, kept: Path = folder / str(number)) -> Iterator[Beginning]:
                scanned = scan(path, alive)
                size = path.stat().st_size
                yield Beginning(scanned, size, _keep(path, config.hyperparameters.max_length, most, kept), kept)

            files.announce(0, names[number:])
            (found[name],) = files.read(0, begin, alive)
        return cls(found)

    @classmethod
    @contextlib.contextmanager
    def of_job(
        cls, config: JobConfig, sources: Mapping[str, Path], progress: Callable[[float], None]
    ) -> Iterator[Self | None]:
        """Reads the beginnings, and deletes them in the end; yields None if the job streams no corpus."""
        if not config.hyperparameters.streaming:
            yield None
            return
        with tempfile.TemporaryDirectory() as folder:
            yield cls.read(config, sources, Path(folder), progress)


def _keep(path: Path, max_length: int, most: int, kept: Path) -> int:
    """Writes the first blocks of a file to `kept`. Returns the bytes of their text."""
    num_bytes = 0
    with kept.open("wb") as file:
        for block in read_blocks(path, max_length, _BLOCK):
            texts = (str(row.values.get("text", "")) for row in block.read if isinstance(row, Row))
            num_bytes += len(block.lines) + sum(len(text.encode()) for text in texts)
            pickle.dump(block, file)
            if num_bytes >= most:
                break
    return num_bytes
