"""Trains a tokenizer on the rows that a job trains on: byte-level BPE with one special token, which ends a text."""

import hashlib
import heapq
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from engine.config.job import JobConfig
from engine.data.beginnings import Beginnings
from engine.data.blocks import BLOCK_SIZE
from engine.data.processes import Crew
from engine.data.spans import whole_text
from engine.data.split import Progress, Split
from engine.data.template_limits import ends_work
from engine.data.tokenizer import Tokenizer
from engine.data.validation import Report
from engine.data.work_limits import WorkLimits
from engine.errors import JobError, Violation
from engine.random_reference import MIN_VOCAB_SIZE, RandomReference
from engine.tokenizer_files import END_OF_TEXT, num_tokens, write_corpus_tokenizer

PHASE: Final = "training_tokenizer"
MAX_TEXT_BYTES: Final = 100_000_000
"""Bytes of text that a tokenizer is trained on; of more text, rows are drawn."""
_MIN_FREQUENCY: Final = 2
"""A pair that occurs once makes no token: it would be a part of that one text."""
_SIGN_SECONDS: Final = 0.5


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer that was trained, and on how much."""

    file: Path
    """Its tokenizer.json."""
    num_tokens: int
    num_bytes: int
    """Bytes of the text that it was trained on."""
    total_bytes: int
    """Bytes of the text of all training rows; 0 if it was trained by another job, or not trained."""
    is_trained: bool = True
    """False if it has the bytes only, because rows have errors for which the job will be refused."""

    @classmethod
    def read(cls, file: Path) -> Self:
        """Returns a tokenizer that another job trained on the same rows."""
        return cls(file, num_tokens(file.parent), 0, 0)


def train_tokenizer(
    config: JobConfig,
    sources: Mapping[str, Path],
    folder: Path,
    progress: Progress,
    limits: WorkLimits = WorkLimits(),  # noqa: B008 - it cannot be changed
    *,
    beginnings: Beginnings | None = None,
    max_bytes: int = MAX_TEXT_BYTES,
) -> TrainedTokenizer:
    """Trains the tokenizer that the job's base model asks for on its training rows, without those that are held out,
    and writes it to the new folder `folder`. The same rows give the same tokenizer, in any order.

    Of more than `max_bytes` of text, rows are drawn at random, the same ones each time. If rows have problems for which
    the job will be refused, no pairs are learned. `progress` is called with PHASE.

    Raises JobError: those of `Split`, and INVALID_CONFIG for rows of token ids.
    """

    def advance(_phase: str, fraction: float | None) -> None:
        progress(PHASE, fraction)

    model = _untrained()
    _save(model, folder)
    tokenizer = Tokenizer(folder, config.chat_template)
    report = Report()
    begun = beginnings or Beginnings.of_job(config, sources, partial(progress, PHASE))
    with Crew(config, folder, tokenizer, 0, limits) as crew:
        split = Split(config, crew, sources, report, advance, BLOCK_SIZE, begun)
        if report.num_errors:
            return TrainedTokenizer(folder / "tokenizer.json", MIN_VOCAB_SIZE, 0, 0, is_trained=False)
        drawn = _Drawn(max_bytes)
        for digest, example in split.trained_examples():
            if example.is_tokenized:
                message = "Rows of token ids belong to a tokenizer that exists; none can be trained on them."
                where = Violation("spec.base_model", message)
                raise JobError("INVALID_CONFIG", message, "Name that tokenizer in base_model.", [where])
            try:
                text = whole_text(example, tokenizer)
            except JobError as error:
                if ends_work(error):
                    raise
                # The row is reported when it is tokenised.
                continue
            drawn.add(digest, text)
    _train(model, drawn.texts(), asked_tokens(config), advance)
    _save(model, folder)
    file = folder / "tokenizer.json"
    return TrainedTokenizer(file, model.get_vocab_size(with_added_tokens=True), drawn.num_bytes, drawn.total_bytes)


def asked_tokens(config: JobConfig) -> int:
    """Returns the number of tokens that the tokenizer of the job's corpus may have."""
    named = RandomReference.parse(config.base_model)
    if named is None or not named.needs_corpus:
        raise ValueError(f"{config.base_model!r} has a tokenizer")
    return named.vocab_size


class _Drawn:
    """The rows with the lowest lots, up to a number of bytes. A lot is a hash of the row, so that the order of the rows
    does not matter."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rows: list[tuple[int, bytes]] = []
        """A heap of the negative lots and the texts: the highest lot is first."""
        self.num_bytes = self.total_bytes = 0

    def add(self, digest: bytes, text: str) -> None:
        encoded = text.encode()
        self.total_bytes += len(encoded)
        # A row alone may exceed the limit.
        encoded = encoded[: self._max_bytes]
        lot = int.from_bytes(hashlib.blake2b(digest, key=b"tokenizer", digest_size=8).digest(), "big")
        heapq.heappush(self._rows, (-lot, encoded))
        self.num_bytes += len(encoded)
        while self.num_bytes > self._max_bytes:
            _, dropped = heapq.heappop(self._rows)
            self.num_bytes -= len(dropped)

    def texts(self) -> list[bytes]:
        """Returns the texts in the order of their lots; a long one may end within a character."""
        self._rows.sort(reverse=True)
        return [text for _, text in self._rows]


def _untrained() -> Any:
    """Returns a tokenizer of the bytes and the end-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.train_from_iterator([], _trainer(MIN_VOCAB_SIZE))
    return model


def _trainer(vocab_size: int) -> Any:
    from tokenizers import pre_tokenizers, trainers

    return trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def _train(model: Any, texts: Sequence[bytes], vocab_size: int, progress: Progress) -> None:
    """Learns the pairs in a thread, in which the library holds no lock, so that this one can tell that it goes on."""
    num_read = 0

    def pieces() -> Iterator[str]:
        nonlocal num_read
        for text in texts:
            num_read += 1
            # The token that ends a text is none of its pairs.
            yield from filter(None, text.decode(errors="ignore").split(END_OF_TEXT))

    failed: list[BaseException] = []

    def train() -> None:
        try:
            model.train_from_iterator(pieces(), _trainer(vocab_size))
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    # Not waited for if the job is cancelled.
    thread = threading.Thread(target=train, name="tokenizer", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_SIGN_SECONDS)
        # Reading and counting the words is about half of the work; how far the pairs are, the library does not tell.
        progress(PHASE, 0.5 * num_read / max(len(texts), 1))
    if failed:
        raise failed[0]


def _save(model: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "trained.json"
    model.save(str(written))
    write_corpus_tokenizer(written, folder)
    written.unlink()
