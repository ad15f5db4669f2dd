"""Splits a job's rows into training rows and held-out rows, and yields their tokens."""

import heapq
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from engine.config.advice import setting
from engine.config.graders import grader, item_paths
from engine.config.job import DataSource, JobConfig
from engine.data.beginnings import Beginning, Beginnings
from engine.data.block_tokenizer import CUT_OFF, HELD_OUT, LEAKED, LONG, LONGEST, BlockSource, Survey, Tokenised
from engine.data.blocks import Block, BlockSize, read_blocks
from engine.data.corpus_files import not_a_corpus
from engine.data.digests import Chosen, Digests, Rows, among, digests_of, drawn, first_of_each, shuffled
from engine.data.formats import TURNS_CUT, Example
from engine.data.processes import Crew, Task
from engine.data.rows import RowProblem
from engine.data.sources import UNWRITTEN, Source, naming
from engine.data.statistics import RowCounts, Statistics
from engine.data.validation import INCOMPLETE, LISTED_OF_A_KIND, Report
from engine.errors import JobError, Violation

Progress = Callable[[str, float | None], None]
"""Callback with the phase (reading_rows, tokenising) and the fraction of it that is done, None if unknown; called while
the work continues."""

_OUTLIER = 20
"""Multiple of the median length above which a row is reported."""


@dataclass
class _Part:
    """State of one source."""

    source: Source
    path: Path
    format: str = ""
    blocks: list[int] = field(default_factory=list)
    """Number of examples of each block."""
    num_rows: int = 0
    """Number of examples and of rows that yield none."""
    start: int = 0
    """Index of its first example in its group."""
    begun: Beginning | None = None
    """Its beginning, if nothing else is tokenised."""
    num_tokenised: int = 0
    """Examples that were tokenised."""
    num_tokens: int = 0
    """Tokens of these."""

    @property
    def end(self) -> int:
        return self.start + sum(self.blocks)

    def estimated_tokens(self) -> int:
        """Returns the tokens of the whole file that are used in an epoch, estimated from its beginning."""
        examples, given = sum(self.blocks), self.source.given
        mean = self.num_tokens / max(self.num_tokenised, 1)
        whole = self.begun.scan.num_bytes / max(self.begun.num_bytes, 1) if self.begun else 1.0
        num_examples = max(examples * whole, 1)
        if given.max_samples is not None:
            num_examples = min(num_examples, given.max_samples)
        tokens = max(round(mean * num_examples), 1)
        return tokens if given.max_tokens is None else min(tokens, given.max_tokens)


@dataclass
class _Group:
    """Sources that are trained on together, or evaluated on; 21 bytes of memory per example."""

    parts: list[_Part]
    digests: Digests
    rows: "array[int]"
    """Row number of each example."""
    unique: Chosen
    """False for duplicates of an earlier example."""
    has_chat: bool
    row_uses: NDArray[numpy.uint8]
    """Use of each example, as `BlockTokenizer.tokenise` takes it."""
    statistics: Statistics

    def distinct(self) -> Digests:
        """Returns the digests without duplicates."""
        return self.digests[self.unique]

    def at(self, index: int) -> tuple[str, int]:
        """Returns the source and row of an example."""
        part = next(part for part in self.parts if index < part.end)
        return part.source.place, self.rows[index]


class Split:
    """Reads every source once to find its distinct rows and their problems, and a second time to tokenise them."""

    def __init__(
        self,
        config: JobConfig,
        crew: Crew,
        sources: Mapping[str, Path],
        report: Report,
        progress: Progress,
        block_size: BlockSize,
        beginnings: Beginnings | None = None,
    ) -> None:
        """`beginnings` are those of a streamed corpus, whose files need not be there any more.

        Raises JobError: EMPTY_DATASET, UNKNOWN_COLUMN, INVALID_CONFIG, TOO_FEW_ROWS, and those of files, formats and
        templates. Problems of single rows are added to the report."""
        self._config, self._crew, self._paths, self._report, self._progress = config, crew, sources, report, progress
        self._block_size, self._beginnings = block_size, beginnings
        self._graded = {path.split(".")[1] for each in config.evaluation.graders for path in item_paths(grader(each))}
        self.train = Statistics()
        self.rows = RowCounts()
        """Complete when `tokenised` is exhausted."""
        progress("reading_rows", None)
        self._training = [self._survey(*listed) for listed in _training(config)]
        self._evaluation = self._survey("evaluation_data", config.evaluation_data)
        self.phases = [group.statistics for group in self._training]
        """Statistics of each phase; one entry if the job has no phases."""
        self.train.format = ", ".join(dict.fromkeys(group.statistics.format for group in self._training))
        self.eval = self._evaluation.statistics
        self.has_chat = any(group.has_chat for group in self._training)
        self.num_leaked = 0
        distinct = _distinct(self._training)
        self.num_distinct = len(distinct)
        if config.evaluation_data:
            leaked = among(self._evaluation.digests, distinct)
            self.num_leaked = int(numpy.count_nonzero(leaked & self._evaluation.unique))
            self._evaluation.row_uses[:] = numpy.where(leaked, LEAKED, HELD_OUT)
            self._evaluation.row_uses[~self._evaluation.unique] = 0
            for part in self._evaluation.parts:
                here = slice(part.start, part.end)
                self._evaluation.row_uses[here] *= self._sampled(self._evaluation, part, self._evaluation.unique[here])
            held_out: Digests = digests_of(b"")
        else:
            held_out = _held_out(distinct, config, report)
        self.held_out = held_out
        """Digests of the rows that are held out of the training data."""
        self.evaluates = bool(config.evaluation_data) or len(held_out) > 0
        waiting = held_out
        for group in self._training:
            self._assign_uses(group, held_out, waiting)
            # A held-out row that several phases have is evaluated in the first of them only.
            waiting = waiting[~among(waiting, group.digests)]
        if not config.evaluation_data:
            self.eval.format = self.train.format
        self._tokenised = 0
        self._longest: list[tuple[int, str, int]] = []

    def tokenised(self, *, keep: bool) -> Iterator[tuple[int, Tokenised]]:
        """Yields tokenised blocks with the index of their phase, in the order of phases and sources; evaluation_data
        comes last. Without `keep`, the rows are only counted."""
        groups = [*self._training, self._evaluation]
        total = sum(int(numpy.count_nonzero(group.row_uses)) for group in groups)
        done = 0

        def alive() -> None:
            self._progress("tokenising", done / max(total, 1))

        alive()
        for number, group in enumerate(groups):
            for part in group.parts:
                for made in self._crew.map(self._wanted(group, part, keep), alive):
                    if made.is_changed:
                        raise _changed(part)
                    done += made.num_wanted
                    for counted in (made.train_statistics, made.eval_statistics):
                        part.num_tokenised += counted.num_examples
                        part.num_tokens += counted.num_tokens
                    self._take(group, made)
                    yield number, made
        self._sum_up()

    def trained_examples(self) -> Iterator[tuple[bytes, Example]]:
        """Yields the rows that are trained on, each once per phase, with their digests. It reads the sources again."""
        for group in self._training:
            for part in group.parts:
                reader, index = part.source.reader(part.format), part.start
                for block in self._blocks(part):
                    for item in part.source.examples(block.rows(), reader):
                        self._progress("reading_rows", None)
                        if not isinstance(item, Example):
                            continue
                        if index == part.end:
                            raise _changed(part)
                        if 0 < group.row_uses[index] < HELD_OUT:
                            yield group.digests[index : index + 1].tobytes(), item
                        index += 1

    def estimated_tokens(self) -> list[int]:
        """Returns the tokens of each training source in an epoch, if only its beginning was read."""
        return [part.estimated_tokens() for group in self._training for part in group.parts]

    def warn_about_long_rows(self) -> None:
        """Warns about rows that are far longer than the median, but not about a corpus, which is cut into sequences
        anyway. Call it when `tokenised` is exhausted."""
        if self._config.hyperparameters.streaming:
            return
        median = self.train.percentiles().get(50, 0)
        for length, place, row in sorted(self._longest, reverse=True):
            if length > max(_OUTLIER * median, LONG):
                message = f"has {length:,} tokens; the median row has {median:,}; check that it is one row"
                self._warn(place, row, "OUTLIER_LENGTH", message)

    def refuse_untrainable(self) -> None:
        """Raises JobError("NOTHING_TO_TRAIN") if the training rows or the held-out rows have no trained tokens."""
        limit = self._config.hyperparameters.max_length
        trained = [("training", self.train)]
        if self._config.phases:
            trained = [(f"phases[{index}]", counted) for index, counted in enumerate(self.phases)]
        for name, statistics in (*trained, *([("held-out", self.eval)] if self.evaluates else [])):
            if statistics.num_trained_tokens == 0:
                raise JobError(
                    "NOTHING_TO_TRAIN",
                    f"The {name} rows have no trained tokens: max_length = {limit} truncates every answer or drops "
                    "every row, or no turn is trained.",
                    "Raise hyperparameters.max_length, or shorten the text before the answers.",
                    [Violation("spec.hyperparameters.max_length", "Every answer is truncated or dropped.")],
                )

    def _survey(self, name: str, listed: Sequence[DataSource]) -> _Group:
        digests = bytearray()
        rows = array("I")
        has_chat, plain = False, ""
        beginnings = self._beginnings if name == "training_data" else None
        parts = []
        for source in Source.all_of(name, listed, self._config):
            part = _Part(source, self._paths[source.given.dataset], start=len(rows))
            parts.append(part)
            self._report.name_file(source.place, part.path.name)
            if beginnings is not None:
                part.begun = beginnings[source.given.dataset]
            with naming(source.place):
                for found in self._surveys(part):
                    digests += found.digests
                    rows.frombytes(found.rows)
                    part.blocks.append(len(found.rows) // rows.itemsize)
                    if part.begun and part.format not in ("", "text"):
                        raise not_a_corpus(part.path, source.place, f"has rows of the format {part.format}")
                    has_chat |= found.has_chat
                    plain = plain or (source.place if found.has_plain else "")
            damage = part.begun.scan.problem if part.begun else None
            if damage and damage.row not in self._report.marked(source.place, damage.reason):
                self._report.add(source.place, damage)
        if plain and self._config.system_prompt:
            message = f"{plain} has rows of plain text, to which no system prompt can be added."
            where = Violation("spec.system_prompt", message)
            raise JobError("INVALID_CONFIG", message, "Remove system_prompt, or use a conversational format.", [where])
        every = digests_of(digests)
        first = first_of_each(every)
        unique = first == numpy.arange(len(first))
        statistics = Statistics(
            num_duplicates=0 if beginnings else len(first) - int(numpy.count_nonzero(unique)),
            format=", ".join(dict.fromkeys(part.format for part in parts)),
        )
        group = _Group(parts, every, rows, unique, has_chat, numpy.zeros(len(first), numpy.uint8), statistics)
        for part in parts:
            self._warn_about_duplicates(group, part, first)
        self._report.arrange()
        return group

    def _warn_about_duplicates(self, group: _Group, part: _Part, first: Rows) -> None:
        if part.begun:
            # Every text of a streamed corpus is trained.
            return
        repeated = part.start + numpy.flatnonzero(~group.unique[part.start : part.end])
        place, made = part.source.place, part.source.is_templated
        reason = "DUPLICATE_EXAMPLE" if made else "DUPLICATE_ROW"
        for index in repeated[:LISTED_OF_A_KIND].tolist():
            row = group.rows[index]
            where_first, row_first = group.at(int(first[index]))
            other = f"row {row_first}" if where_first == place else f"{where_first} row {row_first}"
            if made:
                other = "another one of this row" if other == f"row {row}" else f"one of {other}"
            message = f"{'makes an example that is a ' * made}duplicate of {other}; dropped"
            self._warn(place, row, reason, message)
        self._report.count_more(place, reason, max(len(repeated) - LISTED_OF_A_KIND, 0))

    def _surveys(self, part: _Part) -> Iterator[Survey]:
        """Yields the survey of each block of a source. Raises the error for which the source is refused after all
        problems of its rows were reported."""
        reader = part.source.reader()
        num_items = 0
        blocks = self._blocks(part)

        def task(block: object) -> Task:
            return "survey", BlockSource(part.source.place, part.source.given, reader.format), block

        def surveyed() -> Iterator[Survey]:
            # The first row with a known column decides the format of all rows.
            while not reader.format and (block := next(blocks, None)):
                yield from self._crew.map_here([task(block)], self._alive_reading)
            yield from self._crew.map(map(task, blocks), self._alive_reading)

        for found in surveyed():
            self._report.merge(found.report)
            reader.also_read(found.columns, found.unseen, found.unused)
            part.format = reader.format = reader.format or found.format
            num_items += found.num_items
            if found.error:
                raise found.error
            yield found
        part.source.refuse_useless(part.path.name, reader, num_items)
        if unused := reader.unused_keys(self._graded):
            self._report.add(part.source.place, unused)
        part.num_rows = num_items
        self._report.leave_out(part.source.place, num_items)

    def _blocks(self, part: _Part) -> Iterator[Block]:
        """Yields the blocks of a file; of one that is streamed, those at its beginning."""
        if part.begun:
            return iter(part.begun.blocks)
        return read_blocks(part.path, self._config.hyperparameters.max_length, self._block_size)

    def _alive_reading(self) -> None:
        self._progress("reading_rows", None)

    def _assign_uses(self, group: _Group, held_out: Digests, evaluated_here: Digests) -> None:
        """Decides the use of the training rows. Sampling comes after the split: a held-out row is never sampled,
        however large its weight is."""
        held = among(group.digests, held_out) & group.unique
        for part in group.parts:
            here = slice(part.start, part.end)
            if part.begun:
                # The beginning is only counted; the weight applies to the whole file.
                group.row_uses[here] = (group.unique & ~held)[here]
                continue
            free = self._sampled(group, part, (group.unique & ~held)[here])
            weight = part.source.given.weight
            group.row_uses[here] = free * int(weight)
            if weight % 1:
                own = part.start + numpy.flatnonzero(free)
                chosen = drawn(group.digests[own], round(weight % 1 * len(own)), self._config.seed, b"weight")
                group.row_uses[own[chosen]] += 1
        group.row_uses[held] = numpy.where(among(group.digests[held], evaluated_here), HELD_OUT, 0)

    def _sampled(self, group: _Group, part: _Part, free: NDArray[numpy.bool_]) -> NDArray[numpy.bool_]:
        """Returns the free rows of a source that its max_samples and max_tokens leave."""
        most, own = part.source.given.max_samples, numpy.flatnonzero(free)
        if most is not None and len(own) > most:
            chosen = drawn(group.digests[part.start + own], most, self._config.seed, b"samples")
            free = numpy.zeros_like(free)
            free[own[chosen]] = True
        limit = part.source.given.max_tokens
        return free if limit is None else self._within_tokens(group, part, free, limit)

    def _within_tokens(
        self, group: _Group, part: _Part, free: NDArray[numpy.bool_], limit: int
    ) -> NDArray[numpy.bool_]:
        """Returns as many of the free rows, drawn by the seed, as have at most `limit` trained tokens together; at
        least one. Tokenises them all once more, because only their tokens tell."""
        wanted = self._wanted_by(part, free.astype(numpy.uint8), "trained_tokens")
        counted = [numpy.array(found, numpy.int64) for found in self._crew.map(wanted, self._alive_reading)]
        own = numpy.flatnonzero(free)
        if sum(map(len, counted)) != len(own):
            raise _changed(part)
        order = shuffled(group.digests[part.start + own], self._config.seed, b"tokens")
        total = numpy.cumsum(numpy.concatenate([numpy.zeros(0, numpy.int64), *counted])[order])
        kept = numpy.zeros_like(free)
        kept[own[order[: max(int(numpy.searchsorted(total, limit, "right")), 1)]]] = True
        return kept

    def _wanted(self, group: _Group, part: _Part, keep: bool) -> Iterator[Task]:
        return self._wanted_by(part, group.row_uses[part.start : part.end], "tokenise", keep)

    def _wanted_by(self, part: _Part, uses: NDArray[numpy.uint8], method: str, *more: Any) -> Iterator[Task]:
        """Yields a task for each block of a source that has used examples; `uses` has one entry per example."""
        place = BlockSource(part.source.place, part.source.given, part.format)
        start = 0
        for number, block in enumerate(self._blocks(part)):
            if number == len(part.blocks):
                raise _changed(part)
            behind = start + part.blocks[number]
            if (row_uses := uses[start:behind]).any():
                yield method, place, block, row_uses.tobytes(), *more
            start = behind

    def _take(self, group: _Group, made: Tokenised) -> None:
        """Adds the counts and problems of a block."""
        if made.template_fault and not self._tokenised and not made.num_tokenised:
            raise made.template_fault
        self._tokenised += made.num_tokenised
        self._report.merge(made.report)
        self.train.add(made.train_statistics)
        if group is not self._evaluation:
            group.statistics.add(made.train_statistics)
        self.eval.add(made.eval_statistics)
        self._longest = heapq.nlargest(LONGEST, self._longest + made.longest)

    def _sum_up(self) -> None:
        for group in (*self._training, self._evaluation):
            statistics = group.statistics
            for part in group.parts:
                place = part.source.place
                self._report.leave_out(place, part.num_rows)
                unwritten = len(self._report.marked(place, UNWRITTEN))
                statistics.num_left_out += self._report.num_left_out(place) + unwritten
        trained, every = self._counts(self._training), self._counts([*self._training, self._evaluation])
        self.rows = every
        if len(self._training) == 1:
            only = self._training[0].statistics
            self.train.num_left_out, self.train.num_duplicates = only.num_left_out, only.num_duplicates
            return
        self.train.num_left_out = trained.incomplete + trained.unwritten
        self.train.num_duplicates = trained.duplicates
        # The marks of a training source include its held-out rows.
        held_out = Statistics() if self._evaluation.parts else self.eval
        self.train.num_dropped = max(trained.dropped - held_out.num_dropped, 0)
        self.train.num_cut_off = max(trained.cut_off - held_out.num_cut_off, 0)
        self.train.num_too_long = max(trained.too_long - held_out.num_too_long, 0)

    def _counts(self, groups: Sequence[_Group]) -> RowCounts:
        return RowCounts(
            incomplete=self._num_marked(groups, INCOMPLETE),
            unwritten=self._num_marked(groups, UNWRITTEN),
            turns_cut=self._num_marked(groups, *TURNS_CUT),
            duplicates=_num_duplicates(groups),
            truncated=self._num_marked(groups, "TRUNCATED"),
            dropped=self._num_marked(groups, "NO_TRAINED_TOKENS"),
            cut_off=self._num_marked(groups, CUT_OFF),
            too_long=self._num_marked(groups, "TOO_LONG"),
        )

    def _num_marked(self, groups: Sequence[_Group], *marks: str) -> int:
        """Returns the number of rows of files with one of the marks; each row is counted once."""
        found: dict[str, list[NDArray[numpy.uint32]]] = {}
        for group in groups:
            for part in group.parts:
                rows = (self._report.marked(part.source.place, mark) for mark in marks)
                found.setdefault(part.source.given.dataset, []).extend(rows)
        return sum(len(numpy.unique(numpy.concatenate(rows))) for rows in found.values())

    def _warn(self, place: str, row: int, reason: str, message: str) -> None:
        self._report.add(place, RowProblem(row, "", reason, message), "warning")


def _training(config: JobConfig) -> list[tuple[str, Sequence[DataSource]]]:
    """Returns the training sources of each phase with their path in the spec."""
    if not config.phases:
        return [("training_data", config.training_data)]
    return [(f"phases[{index}].training_data", phase.training_data) for index, phase in enumerate(config.phases)]


def _num_duplicates(groups: Sequence[_Group]) -> int:
    """Returns the number of duplicates in all groups; each example of a file is counted once."""
    found: dict[str, list[NDArray[numpy.intp]]] = {}
    for group in groups:
        for part in group.parts:
            if part.begun:
                continue
            read_so = part.source.given.model_copy(
                update={"weight": 1.0, "max_samples": None, "max_tokens": None}
            ).model_dump_json()
            repeated = numpy.flatnonzero(~group.unique[part.start : part.end])
            found.setdefault(read_so, []).append(repeated)
    return sum(len(numpy.unique(numpy.concatenate(indices))) for indices in found.values())


def _distinct(groups: Sequence[_Group]) -> Digests:
    if len(groups) == 1:
        return groups[0].distinct()
    return numpy.unique(numpy.concatenate([group.distinct() for group in groups]))


def _held_out(digests: Digests, config: JobConfig, report: Report) -> Digests:
    """Returns the digests of the rows to hold out: exactly the fraction, the same rows in any order of the rows."""
    if config.holdout_fraction == 0 or (len(digests) < 2 and report.num_errors):
        return digests[:0]
    if len(digests) < 2:
        raise JobError(
            "TOO_FEW_ROWS",
            f"{len(digests)} distinct row cannot be split into training and held-out rows.",
            f"Add rows, or set {setting('holdout_fraction', 0)} to train without evaluation.",
            [Violation("spec.holdout_fraction", f"{config.holdout_fraction:g} of one row leaves nothing to train on.")],
        )
    return digests[drawn(digests, max(1, round(config.holdout_fraction * len(digests))), config.seed)]


def _changed(part: _Part) -> JobError:
    return JobError("BAD_DATA", f"{part.path.name} changed while it was read.")
