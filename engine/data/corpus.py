"""Makes sequences of exactly max_length tokens of a corpus of running text, without end, while they are trained.

A block of sequences is a function of the job, its files and the state before the block, which is a few numbers. So a
resumed training reads nothing but the block it stopped in.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy
from numpy.typing import NDArray

from engine.config.job import SHUFFLE_BUFFER_TOKENS, DataSource, JobConfig
from engine.data.corpus_files import Chunk, read_chunks
from engine.data.digests import DIGEST_BYTES, digest_of
from engine.data.formats import Example
from engine.data.requested_files import SOON, RequestedFiles
from engine.data.rows import RowProblem
from engine.data.sources import Source
from engine.data.spans import IGNORED, Tokens, effect_of, tokens_of_all
from engine.data.tokenizer import Tokenizer
from engine.errors import JobError, Violation

_FILE: Final = "corpus.json"
_HELD_OUT: Final = "held_out.bin"
WHOLE: Final = 2**31 - 1
"""A max_length at which no text is truncated."""
_ORDER, _SHUFFLE = 1, 2
"""Purposes of random numbers."""
_NAMED = 100
"""Maximum number of rows left out of a block that are named."""

Ids = NDArray[numpy.int32]
Joint = Literal["between", "within", "broken"]
"""`between` texts; `within` a text, which goes on; `broken`: a text had no end, because what follows it is left out."""


@dataclass
class Position:
    """Reading position in the files of one weight."""

    epoch: int = 0
    file: int = 0
    """Index of the file in the order of the epoch."""
    offset: int = 0
    """Bytes of the file before the chunk, decompressed and without a byte-order mark."""
    line: int = 1
    """Number of the chunk's first line."""
    joint: Joint = "between"
    """What the chunk begins with."""
    num_examples: int = 0
    """Used examples of the file before the chunk."""
    num_tokens: int = 0
    """Trained tokens of the file before the chunk."""
    skip: int = 0
    """Tokens of the chunk that are in sequences already."""


@dataclass
class State:
    """Reading position in the whole corpus before a block."""

    block: int
    """Number of the block, from 0."""
    taken: list[int]
    """Number of sequences of each weight so far."""
    positions: list[Position]

    @classmethod
    def of_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Reads what `as_dict` returned."""
        return cls(stored["block"], list(stored["taken"]), [Position(**one) for one in stored["positions"]])

    def as_dict(self) -> dict[str, Any]:
        """Returns the state as JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Corpus:
    """Results of preflight about a corpus: the content of corpus.json and held_out.bin, beside token shards."""

    tokens: list[int]
    """Estimated tokens of each source of training_data in one epoch, before its weight."""
    held_out: bytes = b""
    """Digests of the held-out rows, joined."""

    def write(self, folder: Path) -> None:
        """Writes the files."""
        (folder / _FILE).write_text(json.dumps({"tokens": self.tokens}) + "\n", encoding="utf-8")
        (folder / _HELD_OUT).write_bytes(self.held_out)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads the files."""
        tokens = json.loads((folder / _FILE).read_text("utf-8"))["tokens"]
        return cls(tokens, (folder / _HELD_OUT).read_bytes())


@dataclass(frozen=True)
class StreamedCorpus:
    """Inputs that decide the sequences, beside the job and its tokenizer."""

    corpus: Corpus
    files: Mapping[str, Path]
    """Dataset id → file."""
    start: State | None = None
    """State before the first block to make; None: the beginning."""
    requests: Path | None = None
    """Folder in which readers ask for files; None if all are there."""
    reader: str = ""
    """Name of the process that reads, unique in that folder."""


@dataclass
class SequenceBlock:
    """A block of sequences in the order in which they are trained."""

    input_ids: Ids
    """Shape (sequences, max_length)."""
    labels: Ids
    origins: NDArray[numpy.int64]
    """Of each sequence: source and row of its first token, source and row of its last one. Shape (sequences, 4)."""
    before: State
    behind: State
    """The state before the next block."""
    num_left_out: int = 0
    """Incomplete rows that were left out."""
    left_out: list[str] = field(default_factory=list)
    """Names of the first of them."""


@dataclass(frozen=True)
class _Made:
    """The tokens of one example."""

    row: int
    tokens: Tokens
    joint: Joint
    """What the next example begins with."""


@dataclass
class _Tokens:
    """The tokens of a chunk."""

    ids: Ids
    labels: Ids
    rows: list[int]
    """Row number of each example."""
    ends: Ids
    """Number of tokens up to the end of each example."""
    source: int
    behind: Position
    """Where the next chunk is."""


def sequences_per_block(config: JobConfig) -> int:
    """Returns the number of sequences of a block."""
    hyper = config.hyperparameters
    return max((hyper.shuffle_buffer_tokens or SHUFFLE_BUFFER_TOKENS) // hyper.max_length, 1)


class CorpusStream:
    """Makes the blocks of a corpus, one after the other."""

    def __init__(self, config: JobConfig, tokenizer: Tokenizer, streamed: StreamedCorpus) -> None:
        self._config = config
        by_weight: dict[float, list[int]] = {}
        for index, source in enumerate(config.training_data):
            by_weight.setdefault(source.weight, []).append(index)
        tokens = streamed.corpus.tokens
        self._shares = [
            max(round(weight * sum(tokens[i] for i in indices)), 1) for weight, indices in by_weight.items()
        ]
        start = streamed.start or State(0, [0] * len(by_weight), [Position() for _ in by_weight])
        joined = streamed.corpus.held_out
        held_out = {joined[at : at + DIGEST_BYTES] for at in range(0, len(joined), DIGEST_BYTES)}
        self._block, self._taken = start.block, list(start.taken)
        files = RequestedFiles.of_reader(streamed.files, streamed.requests, streamed.reader)
        self._groups = [
            _Files(config, tokenizer, number, indices, files, held_out, replace(position))
            for number, (indices, position) in enumerate(zip(by_weight.values(), start.positions, strict=True))
        ]

    def state(self) -> State:
        """Returns the state before the next block."""
        return State(self._block, list(self._taken), [replace(group.position) for group in self._groups])

    def block(self, alive: Callable[[], None]) -> SequenceBlock:
        """Returns the next block. `alive` is called while the work continues.

        Raises JobError: BAD_DATA for a row that cannot be read, EMPTY_DATASET if no file has text to train on, and
        those of files.
        """
        count, length = sequences_per_block(self._config), self._config.hyperparameters.max_length
        before = self.state()
        ids, labels = numpy.empty((count, length), numpy.int32), numpy.empty((count, length), numpy.int32)
        origins = numpy.empty((count, 4), numpy.int64)
        # Shuffled where they are written, so that no second copy is needed.
        for at in numpy.random.default_rng([self._config.seed, _SHUFFLE, self._block]).permutation(count).tolist():
            self._next_group().take(ids[at], labels[at], origins[at], alive)
        self._block += 1
        made = SequenceBlock(ids, labels, origins, before, self.state())
        for group in self._groups:
            made.num_left_out += group.num_left_out
            made.left_out += group.left_out
            group.num_left_out, group.left_out = 0, []
        return made

    def _next_group(self) -> "_Files":
        """Returns the files of the weight that is furthest behind its share."""
        number, total = sum(self._taken) + 1, sum(self._shares)
        behind = [share * number - taken * total for share, taken in zip(self._shares, self._taken, strict=True)]
        chosen = behind.index(max(behind))
        self._taken[chosen] += 1
        return self._groups[chosen]


class _Files:
    """The files of one weight, read one after the other, in another order in each epoch."""

    def __init__(
        self,
        config: JobConfig,
        tokenizer: Tokenizer,
        number: int,
        indices: list[int],
        files: RequestedFiles,
        held_out: set[bytes],
        position: Position,
    ) -> None:
        self._config, self._tokenizer, self._number, self._indices = config, tokenizer, number, indices
        self._held_out = held_out
        self._sources = {
            index: Source(f"training_data[{index}]", config.training_data[index], config.system_prompt)
            for index in indices
        }
        self._files = files
        self.position = position
        self._order: tuple[int, list[int]] = (-1, [])
        self._reader: Iterator[Chunk] | None = None
        self._reader_at: Position | None = None
        """Where the open reader is; only epoch, file and offset count."""
        self._tokens: _Tokens | None = None
        self.num_left_out = 0
        self.left_out: list[str] = []
        self._files.announce(number, self._coming())

    def take(self, ids: Ids, labels: Ids, origin: NDArray[numpy.int64], alive: Callable[[], None]) -> None:
        """Fills one sequence with the next tokens."""
        filled = 0
        while filled < len(ids):
            found, skip = self._current(alive), self.position.skip
            count = min(len(ids) - filled, len(found.ids) - skip)
            ids[filled : filled + count] = found.ids[skip : skip + count]
            labels[filled : filled + count] = found.labels[skip : skip + count]
            first, last = numpy.searchsorted(found.ends, [skip, skip + count - 1], "right")
            if not filled:
                origin[:2] = found.source, found.rows[first]
            origin[2:] = found.source, found.rows[last]
            filled += count
            self.position.skip += count

    def _current(self, alive: Callable[[], None]) -> _Tokens:
        """Returns the tokens of a chunk that are not all in sequences yet."""
        if self._tokens is not None and self.position.skip < len(self._tokens.ids):
            return self._tokens
        began = self.position.epoch
        while True:
            if self._tokens is not None:
                self.position = self._tokens.behind
            if self.position.epoch > began + 1:
                raise self._nothing()
            alive()
            self._tokens = self._read(alive)
            if self.position.skip < len(self._tokens.ids):
                return self._tokens

    def _read(self, alive: Callable[[], None]) -> _Tokens:
        """Reads and tokenises the chunk at the position. `alive` is called while it waits for a file."""
        at = self.position
        index = self._order_of(at.epoch)[at.file]
        given = self._config.training_data[index]
        key = Position(at.epoch, at.file, at.offset)
        if self._reader is None or self._reader_at != key:
            self._files.announce(self._number, self._coming())
            length = self._config.hyperparameters.max_length
            self._reader = self._files.read(
                self._number, partial(read_chunks, max_length=length, offset=at.offset, line=at.line), alive
            )
        chunk = next(self._reader, None)
        if chunk is None:
            self._reader = None
            return _Tokens(*_no_tokens(), [], numpy.empty(0, numpy.int32), index, self._next_file(at.joint))
        self._reader_at = Position(at.epoch, at.file, chunk.offset)
        found, joint = self._tokenise(index, chunk)
        kept, is_full = _limited(found, given, at)
        behind = Position(
            epoch=at.epoch,
            file=at.file,
            offset=chunk.offset,
            line=chunk.line,
            joint=joint,
            num_examples=at.num_examples + len(kept),
            num_tokens=at.num_tokens + sum(one.tokens.num_trained for one in kept),
        )
        if is_full:
            self._reader, behind = None, self._next_file(kept[-1].joint if kept else at.joint)
        ids, labels = _no_tokens()
        if kept:
            ids = numpy.concatenate([one.tokens.input_ids for one in kept])
            labels = numpy.concatenate([one.tokens.labels for one in kept])
        ends = numpy.array(list(accumulate(len(one.tokens.input_ids) for one in kept)), numpy.int32)
        return _Tokens(ids, labels, [one.row for one in kept], ends, index, behind)

    def _tokenise(self, index: int, chunk: Chunk) -> tuple[list[_Made], Joint]:
        """Returns the examples of a chunk that are trained, and what the next chunk begins with."""
        source = self._sources[index]
        examples: list[Example] = []
        for item in source.examples(chunk.rows, source.reader("text")):
            if isinstance(item, Example):
                examples.append(item)
            elif item.effect == "refuses":
                raise self._bad(index, item)
            elif item.effect == "leaves_out":
                self._leave_out(index, item.row)
        hyper = self._config.hyperparameters
        made = tokens_of_all(examples, self._tokenizer, hyper.loss_on, WHOLE)
        found: list[_Made] = []
        joint = self.position.joint
        for example, tokens in zip(examples, made, strict=True):
            if isinstance(tokens, JobError):
                if effect_of(tokens) == "refuses":
                    raise self._bad(index, RowProblem(example.row, "", tokens.reason, tokens.message))
                self._leave_out(index, example.row)
                joint = "broken" if joint == "within" else joint
            elif self._held_out and digest_of(example) in self._held_out:
                joint = "broken" if joint == "within" else joint
            else:
                if joint == "broken":
                    tokens = _behind(self._tokenizer.eos_id, tokens)
                elif joint == "within":
                    tokens = _without_leading(tokens, self._tokenizer.leading_ids)
                joint = "within" if example.continues else "between"
                found.append(_Made(example.row, tokens, joint))
        return found, joint

    def _leave_out(self, index: int, row: int) -> None:
        self.num_left_out += 1
        if len(self.left_out) < _NAMED:
            self.left_out.append(f"training_data[{index}] row {row}")

    def _order_of(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            self._order = epoch, self._drawn_order(epoch)
        return self._order[1]

    def _drawn_order(self, epoch: int) -> list[int]:
        lots = numpy.random.default_rng([self._config.seed, _ORDER, self._number, epoch])
        return [self._indices[i] for i in lots.permutation(len(self._indices)).tolist()]

    def _coming(self) -> list[str]:
        """Returns the dataset ids of the files from the position on, each once, as far as others need to know."""
        at, found = self.position, dict[str, None]()
        epoch, left = at.epoch, self._order_of(at.epoch)[at.file :]
        while len(found) <= SOON:
            found |= dict.fromkeys(self._config.training_data[index].dataset for index in left)
            if epoch > at.epoch:
                # The files of a whole epoch are all files.
                break
            epoch += 1
            left = self._drawn_order(epoch)
        return list(found)

    def _next_file(self, joint: Joint) -> Position:
        at = self.position
        joint = "between" if joint == "between" else "broken"
        last = at.file + 1 == len(self._indices)
        return Position(at.epoch + 1, joint=joint) if last else Position(at.epoch, at.file + 1, joint=joint)

    def _bad(self, index: int, problem: RowProblem) -> JobError:
        place = f"training_data[{index}] row {problem.row}"
        name = self._files.paths[self._config.training_data[index].dataset].name
        message = f"{place} of {name}: {problem.message.rstrip('.')}."
        advice = (
            "Correct the row, upload the file again and create the job again. Checkpoints of earlier steps are kept."
        )
        return JobError("BAD_DATA", message, advice, [Violation(place, f"{problem.message} [{problem.reason}]")])

    def _nothing(self) -> JobError:
        places = ", ".join(source.place for source in self._sources.values())
        message = f"{places}: no text is left to train on, beside the held-out rows."
        return JobError("EMPTY_DATASET", message, "Provide files with more text, or lower holdout_fraction.")


def _limited(found: list[_Made], given: DataSource, at: Position) -> tuple[list[_Made], bool]:
    """Returns the examples within max_samples and max_tokens, and True if the file has reached one of them. The first
    example of a file is always used."""
    kept = found
    if given.max_samples is not None:
        kept = kept[: max(given.max_samples - at.num_examples, 0)]
    if given.max_tokens is not None:
        totals = list(accumulate((one.tokens.num_trained for one in kept), initial=at.num_tokens))[1:]
        kept = kept[: max(sum(total <= given.max_tokens for total in totals), int(not at.num_examples))]
    reached = given.max_samples is not None and at.num_examples + len(kept) >= given.max_samples
    return kept, reached or len(kept) < len(found)


def _no_tokens() -> tuple[Ids, Ids]:
    return numpy.empty(0, numpy.int32), numpy.empty(0, numpy.int32)


def _without_leading(tokens: Tokens, leading: list[int]) -> Tokens:
    """Returns the tokens of a piece without the begin-of-text token: the text has begun before it."""
    count = len(leading)
    if not count or tokens.input_ids[:count].tolist() != leading:
        return tokens
    return replace(tokens, input_ids=tokens.input_ids[count:], labels=tokens.labels[count:])


def _behind(token_id: int, tokens: Tokens) -> Tokens:
    ids = numpy.concatenate([numpy.array([token_id], numpy.int32), tokens.input_ids])
    return replace(
        tokens, input_ids=ids, labels=numpy.concatenate([numpy.array([IGNORED], numpy.int32), tokens.labels])
    )
