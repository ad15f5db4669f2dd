"""Losses and answers of single rows, kept under the hash of everything that decides them.

An evaluation reads those that earlier ones of the tenant have made, its own earlier attempts included, and saves its
own in files of JSON lines while it goes on: an evaluation that was killed continues with the rows that it has.
"""

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

KIND: Final = "evaluation_measurements"
"""Kind of the artifacts with measurements."""
_LIBRARIES: Final = ("torch", "transformers", "peft")
_LAYOUT: Final = 1
_SAVE_SECONDS: Final = 20.0
_SAVE_SHARE: Final = 0.1
"""Share of the time so far that a killed evaluation loses at most; otherwise a long one would have a thousand files."""


@dataclass(frozen=True)
class RowLoss:
    """The loss of a model on one row."""

    loss_sum: float
    """Nats, summed over the trained tokens."""
    num_trained: int

    @property
    def loss(self) -> float:
        """Nats per trained token; NaN without one."""
        return self.loss_sum / self.num_trained if self.num_trained else float("nan")


def key_of(**parts: Any) -> str:
    """Returns the hash of what decides a measurement beside the row: weights, number format, settings, libraries."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    text = json.dumps({"layout": _LAYOUT, "libraries": versions, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def row_hash(*token_lists: Sequence[int]) -> str:
    """Returns the hash of a row's tokens."""
    digest = hashlib.sha256()
    for tokens in token_lists:
        digest.update(json.dumps(list(tokens)).encode())
    return digest.hexdigest()[:32]


class Measurements:
    """The measurements of earlier evaluations, and those of this one."""

    def __init__(self, files: Iterable[Path], folder: Path, publish: Callable[[Path], None]) -> None:
        """Reads `files`, and writes new ones into `folder`; `publish` stores each, once it is complete."""
        self._known: dict[tuple[str, str], list[Any]] = {}
        self._folder = folder
        self._publish = publish
        self._unsaved: list[str] = []
        self._num_files = 0
        self._began = self._saved_at = time.monotonic()
        for path in files:
            for line in path.read_text("utf-8").splitlines():
                key, row, value = json.loads(line)
                self._known[key, row] = value

    def loss(self, key: str, row: str) -> RowLoss | None:
        """Returns the loss of a row, if it was measured."""
        found = self._known.get((key, row))
        return None if found is None else RowLoss(float(found[0]), int(found[1]))

    def answer(self, key: str, row: str) -> list[int] | None:
        """Returns the token ids of an answer, if it was made."""
        found = self._known.get((key, row))
        return None if found is None else [int(token) for token in found]

    def add_loss(self, key: str, row: str, loss: RowLoss) -> None:
        """Adds the loss of a row."""
        self._add(key, row, [loss.loss_sum, loss.num_trained])

    def add_answer(self, key: str, row: str, ids: Sequence[int]) -> None:
        """Adds an answer."""
        self._add(key, row, list(ids))

    def save(self) -> None:
        """Writes and publishes the measurements that are not saved yet."""
        self._saved_at = time.monotonic()
        if not self._unsaved:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._num_files += 1
        path = self._folder / f"{self._num_files:04}.jsonl"
        path.write_text("".join(self._unsaved), "utf-8")
        self._unsaved.clear()
        self._publish(path)

    def _add(self, key: str, row: str, value: list[Any]) -> None:
        self._known[key, row] = value
        self._unsaved.append(json.dumps([key, row, value]) + "\n")
        now = time.monotonic()
        if now - self._saved_at > max(_SAVE_SECONDS, _SAVE_SHARE * (now - self._began)):
            self.save()
