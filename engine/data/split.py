"""A job's rows, divided into those that are trained on and those that are held out, as tokens."""

import hashlib
import heapq
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.config.job import JobConfig
from engine.data.formats import Example
from engine.data.rows import RowProblem
from engine.data.sources import Source
from engine.data.spans import Tokens, tokens_of
from engine.data.statistics import Statistics, script_of
from engine.data.tokenizer import Tokenizer
from engine.data.validation import Report
from engine.errors import JobError, Violation

Progress = Callable[[str, float | None], None]
"""Told the phase (reading_rows, tokenising) and the share of it that is done; called for every row."""

_TEMPLATE_FAULTS = ("TEMPLATE_FAILED", "TEMPLATE_NOT_INCREMENTAL")
_FAILED_AT_FIRST = 10
"""So many rows that fail before any other has come through: the template fails with all of them."""
_OUTLIER = 20
"""Times the median length from which on a row is suspicious."""
_OUTLIER_TOKENS = 1024
_LONGEST = 100


class Split:
    """Reads every source once to know its distinct rows, and what is wrong with them; then gives out the tokens."""

    def __init__(
        self,
        config: JobConfig,
        tokenizer: Tokenizer,
        sources: Mapping[str, Path],
        report: Report,
        progress: Progress,
    ) -> None:
        """Raises JobError: EMPTY_DATASET, UNKNOWN_COLUMN, INVALID_CONFIG, TOO_FEW_ROWS, and those of files, formats and
        templates. What is wrong with single rows goes to the report."""
        self._config, self._tokenizer, self._report, self._progress = config, tokenizer, report, progress
        self.train, self.eval = Statistics(), Statistics()
        self.has_chat = False
        progress("reading_rows", None)
        self._training = Source.all_of("training_data", config.training_data, sources, config)
        self._evaluation = Source.all_of("evaluation_data", config.evaluation_data, sources, config)
        trained = self._survey(self._training)
        evaluated = self._survey(self._evaluation)
        self._held_out = set(evaluated) if self._evaluation else _held_out(list(trained), config, report)
        self._leaked = self._held_out.intersection(trained) if self._evaluation else set()
        self.num_leaked = len(self._leaked)
        self._skipped: set[bytes] = set() if self._evaluation else self._held_out
        # After the split: of what is held out nothing is sampled, however large a weight is.
        self._extra = self._sampled(trained, config.seed)
        self._num_rows = len(trained) + len(evaluated)
        self._done = self._tokenised = 0
        self._longest: list[tuple[int, str, int]] = []
        for statistics, listed in ((self.train, self._training), (self.eval, self._evaluation)):
            statistics.num_duplicates = sum(source.num_duplicates for source in listed)
        self._weights = {source.place: source.weight for source in self._training}
        self.train.format = _formats(self._training)
        self.eval.format = _formats(self._evaluation or self._training)

    @property
    def evaluates(self) -> bool:
        return bool(self._held_out)

    def trained(self) -> Iterator[Tokens]:
        """Rows to train on."""
        for place, digest, example in self._unique(self._training):
            self.has_chat |= example.is_chat
            if digest in self._skipped:
                continue
            copies = int(self._weights[place]) + (digest in self._extra)
            if copies:
                for tokens in self._row(place, example, self.train):
                    yield tokens
                    for _ in range(copies - 1):
                        self.train.count(len(tokens.input_ids), tokens.num_trained, tokens.truncated)
                        yield tokens
        self._leave_out()

    def evaluated(self) -> Iterator[tuple[Example, Tokens]]:
        """Held-out rows."""
        for place, digest, example in self._unique(self._evaluation or self._training):
            if digest in self._leaked:
                message = "is also trained on, so that the evaluation will flatter; take it out of one of the two"
                self._warn(place, example.row, "LEAKED_ROW", message)
            if digest in self._held_out:
                for tokens in self._row(place, example, self.eval):
                    yield example, tokens
        self._leave_out()

    def doubt_lengths(self) -> None:
        """Reports rows far longer than the others; to be called when all were given out."""
        median = self.train.percentiles().get(50, 0)
        for length, place, row in sorted(self._longest, reverse=True):
            if length > max(_OUTLIER * median, _OUTLIER_TOKENS):
                message = f"has {length:,} tokens, where half of the rows have at most {median:,}; is it one row?"
                self._warn(place, row, "OUTLIER_LENGTH", message)

    def refuse_untrainable(self) -> None:
        """Raises JobError("NOTHING_TO_TRAIN") where training or evaluation would have no token to learn from."""
        limit = self._config.hyperparameters.max_length
        for name, statistics in (("training", self.train), *([("held-out", self.eval)] if self.evaluates else [])):
            if statistics.num_trained_tokens == 0:
                raise JobError(
                    "NOTHING_TO_TRAIN",
                    f"Of the {name} rows no token would be trained: max_length = {limit} cuts off every answer, or no "
                    "turn is to be trained.",
                    "Raise hyperparameters.max_length, or shorten what stands before the answers.",
                    [Violation("spec.hyperparameters.max_length", "Every answer lies beyond it.")],
                )

    def _sampled(self, trained: Mapping[bytes, int], seed: int) -> set[bytes]:
        """Rows that are seen once more than their source's weight says in whole numbers: of each source exactly the
        share that the fraction of its weight is, the same ones whatever the order of the rows."""
        chosen: set[bytes] = set()
        for index, source in enumerate(self._training):
            fraction = source.weight % 1
            if fraction:
                own = [
                    digest
                    for digest, first in trained.items()
                    if first % len(self._training) == index and digest not in self._skipped
                ]
                chosen.update(_drawn(own, round(fraction * len(own)), seed, b"weight"))
        return chosen

    def _survey(self, sources: Sequence[Source]) -> dict[bytes, int]:
        """Digests of the distinct rows, in their order, each with a number that tells its row and its source."""
        # Row and source in one number: a tuple for each row would be most of the memory.
        digests: dict[bytes, int] = {}
        plain = ""
        for index, source in enumerate(sources):
            source.num_duplicates = 0
            for item in source.read():
                self._progress("reading_rows", None)
                if isinstance(item, RowProblem):
                    self._report.add(source.place, item)
                    continue
                digest = _digest(item)
                here = item.row * len(sources) + index
                distinct = len(digests)
                first = digests.setdefault(digest, here)
                if len(digests) == distinct:
                    source.num_duplicates += 1
                    row, other_index = divmod(first, len(sources))
                    place = "" if other_index == index else f"{sources[other_index].place} "
                    other = f"{place}row {row}"
                    self._warn(source.place, item.row, "DUPLICATE_ROW", f"says the same as {other}, and is dropped")
                self._look_for_control_tokens(source.place, item)
                plain = plain or ("" if item.is_chat else source.place)
            self._report.leave_out(source.place, source.num_rows)
        if plain and any(source.system_prompt for source in sources):
            message = f"{plain} has rows of plain text, before which no system prompt can be put."
            where = Violation("spec.system_prompt", message)
            raise JobError(
                "INVALID_CONFIG", message, "Leave system_prompt out, or use a conversational format.", [where]
            )
        return digests

    def _look_for_control_tokens(self, place: str, example: Example) -> None:
        texts = [("prompt", example.prompt), ("completion", example.completion)]
        texts += [(f"messages[{index}]", message["content"]) for index, message in enumerate(example.messages)]
        for column, text in texts:
            if found := self._tokenizer.control.search(text):
                message = (
                    f"has the control token {found[0]} in its text, which the model takes for the end of a turn or of "
                    "a text; was the chat template applied already?"
                )
                self._report.add(place, RowProblem(example.row, column, "CONTROL_TOKEN", message), "warning")
                return

    def _unique(self, sources: Sequence[Source]) -> Iterator[tuple[str, bytes, Example]]:
        seen: set[bytes] = set()
        sound = not self._report.num_errors
        for source in sources:
            for item in source.read():
                if isinstance(item, RowProblem):
                    if sound and item.effect == "refuses":
                        raise JobError("BAD_DATA", f"{source.path.name} changed while it was read.")
                    continue
                digest = _digest(item)
                if digest not in seen:
                    seen.add(digest)
                    yield source.place, digest, item

    def _row(self, place: str, example: Example, statistics: Statistics) -> Iterator[Tokens]:
        """The row's tokens, counted; nothing when none of them would be trained."""
        hyper = self._config.hyperparameters
        self._done += 1
        self._progress("tokenising", self._done / self._num_rows)
        try:
            tokens = tokens_of(example, self._tokenizer, hyper.loss_on, hyper.max_length)
        except JobError as error:
            seen_enough = self._done in (_FAILED_AT_FIRST, self._num_rows)
            if seen_enough and not self._tokenised and error.reason in _TEMPLATE_FAULTS:
                raise
            # A template may well refuse one conversation, two questions in a row for instance, and take the others.
            if error.reason == "TEMPLATE_FAILED":
                problem = RowProblem(example.row, "", error.reason, error.message.rstrip("."), "leaves_out")
            else:
                problem = RowProblem(example.row, "", error.reason, f"{error.message} {error.advice}")
            self._report.add(place, problem)
            return
        self._tokenised += 1
        self._remember(tokens.num_uncut, place, example.row)
        # The first token is given, never predicted: a label there trains nothing.
        if any(label >= 0 for label in tokens.labels[1:]):
            statistics.count(len(tokens.input_ids), tokens.num_trained, tokens.truncated)
            for turn in example.messages:
                statistics.roles[turn["role"]] = statistics.roles.get(turn["role"], 0) + 1
            script = script_of(example.expected_output or example.completion)
            statistics.scripts[script] = statistics.scripts.get(script, 0) + 1
            if tokens.truncated:
                message = f"has {tokens.num_uncut:,} tokens and is cut at max_length = {hyper.max_length:,}"
                self._warn(place, example.row, "TRUNCATED", message)
            yield tokens
        else:
            statistics.num_dropped += 1
            statistics.num_truncated += tokens.truncated
            cut = f": max_length = {hyper.max_length:,} cuts the answer off" if tokens.truncated else ""
            self._warn(place, example.row, "NO_TRAINED_TOKENS", f"has nothing to train on, and is dropped{cut}")

    def _leave_out(self) -> None:
        for statistics, listed in ((self.train, self._training), (self.eval, self._evaluation)):
            for source in listed:
                self._report.leave_out(source.place, source.num_rows)
            statistics.num_left_out = sum(self._report.num_left_out(source.place) for source in listed)

    def _remember(self, length: int, place: str, row: int) -> None:
        if length > _OUTLIER_TOKENS:
            (heapq.heappush if len(self._longest) < _LONGEST else heapq.heappushpop)(
                self._longest, (length, place, row)
            )

    def _warn(self, place: str, row: int, reason: str, message: str) -> None:
        self._report.add(place, RowProblem(row, "", reason, message), "warning")


def _digest(example: Example) -> bytes:
    content: list[Any] = [*example.messages] or [example.prompt, example.completion, *example.input_ids]
    content += [example.tools, sorted(example.untrained), example.labels, example.continues]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).digest()


def _held_out(digests: Sequence[bytes], config: JobConfig, report: Report) -> set[bytes]:
    """The share of the rows to hold out: exactly as many, the same ones whatever the order of the rows."""
    if config.holdout_fraction == 0 or (len(digests) < 2 and report.num_errors):
        return set()
    if len(digests) < 2:
        raise JobError(
            "TOO_FEW_ROWS",
            f"{len(digests)} distinct row cannot be split into training and held-out rows.",
            "Add rows, or set spec.holdout_fraction = 0 to train without evaluation.",
            [Violation("spec.holdout_fraction", f"{config.holdout_fraction:g} of one row leaves nothing to train on.")],
        )
    return _drawn(digests, max(1, round(config.holdout_fraction * len(digests))), config.seed)


def _drawn(digests: Sequence[bytes], count: int, seed: int, purpose: bytes = b"") -> set[bytes]:
    key = seed.to_bytes(8, "big") + purpose
    return set(heapq.nsmallest(count, digests, key=lambda digest: hashlib.blake2b(digest, key=key).digest()))


def _formats(sources: Sequence[Source]) -> str:
    return ", ".join(dict.fromkeys(source.format for source in sources))
