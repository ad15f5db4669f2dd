"""Files of a corpus that are not all on this machine: whoever reads them asks for them in the order of their use.

The reader names, in a file of its own, the files that it reads now and those that come next. The supervisor reads that,
downloads them to the paths that the reader knows, and deletes those that nobody names when it needs their room. The two
share nothing but folders: the reader may be a process below a confined child, or on another machine.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

_T = TypeVar("_T")

REQUESTS: Final = "requested-files"
"""Folder below a child's `out_dir` with the requests of its readers."""
MAX_REQUEST_BYTES: Final = 4 << 20
SOON: Final = 8
"""Maximum number of files that a reader names in advance for each of its streams."""
_MAX_NAMES: Final = 4096
_WAIT_SECONDS: Final = 0.1


class FileRequest(BaseModel):
    """The content of a reader's file; names are dataset ids."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    now: list[str] = Field(max_length=_MAX_NAMES)
    """Files that are read, or waited for."""
    soon: list[str] = Field(max_length=_MAX_NAMES)
    """Files that come next, in this order."""


class RequestedFiles:
    """The files of a corpus for one reader, which reads several streams of files at once."""

    def __init__(self, paths: Mapping[str, Path], request: Path | None) -> None:
        """`paths`: dataset id → file. `request` is the reader's own file; None if all files are there."""
        self.paths = paths
        self._request = request
        self._coming: dict[int, Sequence[str]] = {}

    @classmethod
    def of_reader(cls, paths: Mapping[str, Path], folder: Path | None, reader: str) -> Self:
        """Returns the files for the reader of that name, which is unique in the folder of requests."""
        return cls(paths, None if folder is None else folder / f"{reader}.json")

    def announce(self, stream: int, coming: Sequence[str]) -> None:
        """Tells which files a stream reads: the current one first. Call it for every stream before any is read."""
        self._coming[stream] = coming[: 1 + SOON]

    def read(self, stream: int, chunks_of: Callable[[Path], Iterator[_T]], alive: Callable[[], None]) -> Iterator[_T]:
        """Yields what `chunks_of` yields of the current file of a stream, once the file is there. `alive` is called
        while it waits."""
        path = self.paths[self._coming[stream][0]]
        if self._request is None:
            yield from chunks_of(path)
            return
        self._ask(self._request)
        while True:
            while not path.exists():
                alive()
                time.sleep(_WAIT_SECONDS)
            try:
                yield from chunks_of(path)
            except FileNotFoundError:
                # The supervisor deleted it before it saw that it is needed again. An open file stays readable.
                continue
            return

    def _ask(self, file: Path) -> None:
        now = dict.fromkeys(coming[0] for coming in self._coming.values())
        turns = zip_longest(*(coming[1:] for coming in self._coming.values()))
        soon = dict.fromkeys(name for turn in turns for name in turn if name is not None and name not in now)
        partial = file.with_suffix(".partial")
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(FileRequest(now=list(now), soon=list(soon)).model_dump_json(), "utf-8")
        partial.replace(file)
