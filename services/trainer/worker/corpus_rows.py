"""The sequences of a streamed corpus as the rows of a training: made by a process of their own, while the steps run."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import repeat
from pathlib import Path
from typing import Any, Final

from datasets import Dataset
from torch.utils.data import Sampler

from chassis.child.pipe import EventSink
from engine.config.steps import steps_per_epoch
from engine.data.corpus import Corpus, SequenceBlock, State, StreamedCorpus, sequences_per_block
from engine.data.prepare import Prepared
from engine.data.processes import Crew
from engine.data.tokenizer import Tokenizer
from engine.data.work_limits import WorkLimits
from finetuneflow.v1.event_pb2 import Warning
from services.trainer.worker.child_input import TrainingInput
from services.trainer.worker.launch import RANK

CORPUS_FILE: Final = "corpus.json"
"""File of a checkpoint with the state before the block that comes next, or that the next sequence is in."""


class CorpusRows(Dataset):  # type: ignore[misc]
    """The sequences of all epochs, numbered from 0. They are read in this order, or from a checkpoint on.

    Rank r of several reads the batches r, r + ranks and so on of the same order: an index may skip others, but not go
    back to an earlier block.
    """

    def __init__(self, child_input: TrainingInput, sink: EventSink) -> None:
        # TRL and the Trainer take nothing but a Dataset, and look at its columns and its first row.
        example = Dataset.from_dict({"input_ids": [[0, 0]], "labels": [[0, 0]]})
        super().__init__(example.data, info=example.info)
        config = child_input.config
        self._sink, self._per_block = sink, sequences_per_block(config)
        self.per_step = config.rows_per_step
        self._remembered = 2 * self.per_step // self._per_block + 3
        """Blocks whose origins and states are known: the data loader fetches ahead."""
        (counted,) = Prepared.read(child_input.data_dir).phases
        self._per_epoch = steps_per_epoch(counted.num_sequences(packing=True), config) * self.per_step
        start = _start(child_input.resume.path) if child_input.resume else None
        self._number = -1 if start is None else start.block - 1
        self._current: SequenceBlock | None = None
        self._states: dict[int, State] = {} if start is None else {start.block: start}
        """Number of a block → the state before it."""
        self._origins: dict[int, Any] = {}
        streamed = StreamedCorpus(
            Corpus.read(child_input.data_dir),
            child_input.sources,
            start,
            child_input.requests,
            f"process-{os.environ.get(RANK, '0')}",
        )
        self._blocks = _made(child_input, streamed, sink.ticking)

    def __len__(self) -> int:
        return self._per_epoch

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        yield {"input_ids": [0, 0], "labels": [0, 0]}

    def __getitem__(self, index: Any) -> dict[str, Any]:
        block, at = divmod(int(index), self._per_block)
        if block < self._number:
            raise IndexError(f"sequence {index} is in a block before the current one")
        while self._current is None or self._number < block:
            self._advance()
        return {"input_ids": self._current.input_ids[at].tolist(), "labels": self._current.labels[at].tolist()}

    def __getitems__(self, keys: Iterable[int]) -> list[dict[str, Any]]:
        return [self[key] for key in keys]

    def remove_columns(self, column_names: Any, new_fingerprint: str | None = None) -> "CorpusRows":
        """Returns itself: the Trainer asks for copies without unused columns, and uses both."""
        return self

    def _advance(self) -> None:
        made = self._current = next(self._blocks)
        self._number = made.before.block
        self._states |= {self._number: made.before, self._number + 1: made.behind}
        self._origins[self._number] = made.origins
        for known in (self._states, self._origins):
            known.pop(self._number - self._remembered, None)
        if made.num_left_out:
            shown = ", ".join(made.left_out[:8])
            message = f"{made.num_left_out:,} rows of the corpus are incomplete and dropped, such as {shown}."
            advice = "Correct them if there are more than you expect."
            self._sink.emit(Warning(reason="ROWS_LEFT_OUT", message=message, advice=advice))

    def sampler(self) -> "Sampler[int]":
        """Returns the order of the sequences, which is that of their numbers."""
        return _InOrder(self._per_epoch)

    def save(self, checkpoint: Path, step: int) -> None:
        """Writes where the training continues after a step into a checkpoint."""
        block = step * self.per_step // self._per_block
        (checkpoint / CORPUS_FILE).write_text(json.dumps(self._states[block].as_dict()) + "\n")

    def names(self, indices: Iterable[int]) -> list[str]:
        """Returns the rows that sequences begin and end in; none for sequences that are long gone."""
        found: list[str] = []
        for index in indices:
            block, at = divmod(index, self._per_block)
            if block in self._origins:
                source, row, last_source, last_row = self._origins[block][at].tolist()
                found += [f"training_data[{source}] row {row}", f"training_data[{last_source}] row {last_row}"]
        return list(dict.fromkeys(found))

    def close(self) -> None:
        """Ends the process that makes the sequences."""
        self._blocks.close()


class _InOrder(Sampler[int]):
    """The numbers of the sequences of an epoch."""

    def __init__(self, per_epoch: int) -> None:
        self._per_epoch, self._epoch = per_epoch, 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch. The Trainer calls it before each epoch, and when it resumes in one."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._per_epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._epoch * self._per_epoch, (self._epoch + 1) * self._per_epoch))


def _made(
    child_input: TrainingInput, streamed: StreamedCorpus, waiting: Callable[[], AbstractContextManager[None]]
) -> Any:
    """Yields the blocks from the start on. The crew's process is a few blocks ahead."""
    config, model = child_input.config, child_input.model.path
    tokenizer = Tokenizer(model, config.chat_template)
    with Crew(config, model, tokenizer, 1, WorkLimits()) as crew:
        blocks = crew.map(repeat(("next_sequences", streamed)), lambda: None)
        while True:
            with waiting():
                made = next(blocks)
            yield made


def _start(checkpoint: Path) -> State:
    stored: Mapping[str, Any] = json.loads((checkpoint / CORPUS_FILE).read_text())
    return State.of_dict(stored)
