"""The beginnings of the files of a streamed corpus, which preflight keeps: of a file that it has read, nothing else is
needed any more, so the files need not all be on the disk at once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from engine.config.job import JobConfig
from engine.data.blocks import Block, BlockSize, read_blocks
from engine.data.corpus_files import Scan, check_corpus_file, scan
from engine.data.requested_files import RequestedFiles
from engine.data.rows import Row
from engine.data.sources import naming

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
    blocks: Sequence[Block]


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
        progress: Callable[[float], None],
        requests: Path | None = None,
    ) -> Self:
        """Reads each file to its end, one after the other, and keeps its beginning.

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
        found = {}
        for number, name in enumerate(names):

            def alive(done: float = number / len(names)) -> None:
                progress(done)

            def begin(path: Path) -> Iterator[Beginning]:
                scanned = scan(path, alive)
                yield _beginning(path, scanned, config.hyperparameters.max_length, most)

            files.announce(0, names[number:])
            with naming(places[name]):
                (found[name],) = files.read(0, begin, alive)
        return cls(found)

    @classmethod
    def of_job(cls, config: JobConfig, sources: Mapping[str, Path], progress: Callable[[float], None]) -> Self | None:
        """Reads the beginnings. Returns None if the job streams no corpus."""
        return cls.read(config, sources, progress) if config.hyperparameters.streaming else None


def _beginning(path: Path, scanned: Scan, max_length: int, most: int) -> Beginning:
    blocks, num_bytes = [], 0
    for block in read_blocks(path, max_length, _BLOCK):
        texts = (str(row.values.get("text", "")) for row in block.read if isinstance(row, Row))
        num_bytes += len(block.lines) + sum(len(text.encode()) for text in texts)
        blocks.append(block)
        if num_bytes >= most:
            break
    return Beginning(scanned, path.stat().st_size, num_bytes, blocks)
