"""Surveys and tokenises blocks of rows, in this process or in a child process."""

import heapq
import json
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from engine.config.job import DataSource, JobConfig
from engine.data.blocks import Block
from engine.data.corpus import WHOLE, CorpusStream, SequenceBlock, StreamedCorpus
from engine.data.digests import digest_of
from engine.data.formats import Example
from engine.data.languages import is_sampled, language_of, texts_of
from engine.data.rows import RowProblem
from engine.data.sources import Source
from engine.data.spans import Tokens, effect_of, prompt_text, tokens_of_all
from engine.data.statistics import Statistics, script_of
from engine.data.tokenizer import Tokenizer
from engine.data.validation import Report
from engine.errors import JobError

Alive = Callable[[], None]
"""Callback for every row; tells the caller that the work continues."""

HELD_OUT = 128
"""Use of a row that is held out. Smaller values are the number of times that the row is trained on, at most 101."""
LEAKED = HELD_OUT + 1
"""Use of a row of evaluation_data that is also trained on."""
LONGEST = 100
"""Maximum number of long rows that are recorded; the longest ones are kept."""
LONG = 1024
"""Tokens above which a row counts as long."""
CUT_OFF = "CUT_OFF"
"""Mark of a row that is dropped because truncation removed all its trained tokens."""
EXAMINED_ROWS = 100
"""Held-out rows that are looked at for the values that graders name."""
_TEMPLATE_FAULTS = ("TEMPLATE_FAILED", "TEMPLATE_NOT_INCREMENTAL")
_BATCH_ROWS = 128
"""Rows that are tokenised in one call."""


@dataclass(frozen=True)
class BlockSource:
    """The source of a block."""

    name: str
    """The source's path in the spec, such as `training_data[0]`."""
    source: DataSource
    format: str
    """Format of its rows; empty until it is known."""


@dataclass
class Survey:
    """Results of the first reading of a block."""

    digests: bytes = b""
    """DIGEST_BYTES for each example, in the order of the file; equal for duplicates only."""
    rows: bytes = b""
    """Row number of each example, as 32-bit integers."""
    report: Report = field(default_factory=Report)
    format: str = ""
    columns: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    """Keys of the mapping whose column no row has."""
    unused: list[str] = field(default_factory=list)
    """Columns and keys of turns whose values are not used."""
    num_items: int = 0
    """Number of examples and of problems, without warnings."""
    has_chat: bool = False
    has_plain: bool = False
    error: JobError | None = None
    """Error for which the source as a whole is refused; it occurred after the rows that are counted here."""


@dataclass
class TokenRows:
    """Concatenated tokens of several rows."""

    input_ids: NDArray[numpy.int32]
    labels: NDArray[numpy.int32]
    lengths: NDArray[numpy.int32]
    """Number of tokens of each row."""
    place: str
    """The source's path in the spec."""
    numbers: NDArray[numpy.uint32]
    """Row number of each row in its source."""


@dataclass
class Tokenised:
    """Tokens and counts of the used rows of a block."""

    is_changed: bool = False
    """True if the number of examples differs from that of the survey: the file changed."""
    num_wanted: int = 0
    train: TokenRows | None = None
    eval: TokenRows | None = None
    eval_rows: str = ""
    """One line of JSON per held-out row. If rows are only counted, the first EXAMINED_ROWS, and only with graders."""
    train_statistics: Statistics = field(default_factory=Statistics)
    eval_statistics: Statistics = field(default_factory=Statistics)
    report: Report = field(default_factory=Report)
    longest: list[tuple[int, str, int]] = field(default_factory=list)
    """The longest rows as (tokens, source, row); a heap of at most LONGEST."""
    num_tokenised: int = 0
    """Rows that were tokenised without an error, before any were dropped."""
    template_fault: JobError | None = None
    """The first error that the chat template caused."""


class BlockTokenizer:
    """Surveys and tokenises the blocks of one job."""

    def __init__(self, config: JobConfig, tokenizer: Tokenizer) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._sources: dict[str, Source] = {}
        self._stream: CorpusStream | None = None

    @classmethod
    def of_job(cls, config: str, tokenizer_dir: str) -> "BlockTokenizer":
        """Returns the tokenizer for a JobConfig in JSON and the folder of a tokenizer."""
        job = JobConfig.model_validate_json(config)
        return cls(job, Tokenizer(Path(tokenizer_dir), job.chat_template))

    def survey(self, place: BlockSource, block: Block, alive: Alive) -> Survey:
        """Reads a block and reports the problems of its rows."""
        found = Survey()
        rows = array("I")
        digests = []
        source = self._source(place)
        reader = source.reader(place.format)
        try:
            for item in source.examples(block.rows(), reader):
                alive()
                found.num_items += not (isinstance(item, RowProblem) and item.effect == "warns")
                if isinstance(item, RowProblem):
                    found.report.add(place.name, item)
                    continue
                digests.append(digest_of(item))
                rows.append(item.row)
                self._look_for_control_tokens(place.name, item, found.report)
                found.has_chat |= item.is_chat
                found.has_plain |= not item.is_chat
        except JobError as error:
            found.error = error
        found.digests, found.rows = b"".join(digests), rows.tobytes()
        found.format, found.columns = reader.format, reader.columns
        found.unseen, found.unused = reader.unseen, reader.unused
        return found

    def trained_tokens(self, place: BlockSource, block: Block, wanted: bytes, alive: Alive) -> "array[int]":
        """Returns the number of trained tokens of each wanted example of a block; 0 for one that would be dropped.
        `wanted` has one byte per example."""
        source, hyper = self._source(place), self._config.hyperparameters
        items = source.examples(block.rows(), source.reader(place.format))
        chosen = [one for one, use in zip((i for i in items if isinstance(i, Example)), wanted, strict=False) if use]
        counted = array("q")
        for start in range(0, len(chosen), _BATCH_ROWS):
            alive()
            settings = (hyper.loss_on, hyper.max_length, hyper.truncation)
            for tokens in tokens_of_all(chosen[start : start + _BATCH_ROWS], self._tokenizer, *settings):
                kept = not isinstance(tokens, JobError) and tokens.trains and not tokens.too_long
                counted.append(tokens.num_trained if kept and not isinstance(tokens, JobError) else 0)
        return counted

    def next_sequences(self, streamed: StreamedCorpus, alive: Alive) -> SequenceBlock:
        """Returns the next block of a corpus; the first call decides of which one, and where it begins."""
        if self._stream is None:
            self._stream = CorpusStream(self._config, self._tokenizer, streamed)
        return self._stream.block(alive)

    def tokenise(self, place: BlockSource, block: Block, row_uses: bytes, keep: bool, alive: Alive) -> Tokenised:
        """Returns the tokens of the used rows. `row_uses` has one byte per example of the block: 0 (unused), the number
        of times to train on it, HELD_OUT or LEAKED. Without `keep`, the rows are only counted."""
        made = Tokenised()
        train, evaluated = _Rows(), _Rows()
        lines: list[str] = []
        wanted: list[tuple[int, Example]] = []

        def flush() -> None:
            hyper = self._config.hyperparameters
            alive()
            settings = (hyper.loss_on, hyper.max_length, hyper.truncation)
            found = tokens_of_all([one for _, one in wanted], self._tokenizer, *settings)
            if hyper.streaming:
                # Sequences are cut out of whole texts; held-out rows are evaluated one by one.
                whole = [index for index, (use, _) in enumerate(wanted) if use < HELD_OUT]
                texts = [wanted[index][1] for index in whole]
                for index, tokens in zip(
                    whole, tokens_of_all(texts, self._tokenizer, hyper.loss_on, WHOLE), strict=True
                ):
                    found[index] = tokens
            for (use, example), tokens in zip(wanted, found, strict=True):
                alive()
                if use == LEAKED:
                    message = "is also trained on, so eval_loss will be too low; remove it from one of the datasets"
                    _warn(made.report, place.name, example.row, "LEAKED_ROW", message)
                held_out = use >= HELD_OUT
                statistics = made.eval_statistics if held_out else made.train_statistics
                if not self._counted(place.name, example, tokens, statistics, made) or isinstance(tokens, JobError):
                    continue
                if held_out:
                    if keep:
                        evaluated.add(tokens, 1, example.row)
                    if keep or (self._config.evaluation.graders and len(lines) < EXAMINED_ROWS):
                        lines.append(json.dumps(eval_row(example, self._tokenizer), ensure_ascii=False) + "\n")
                    continue
                for _ in range(use - 1):
                    statistics.count(len(tokens.input_ids), tokens.num_trained, tokens.truncated)
                train.add(tokens, use, example.row)
            wanted.clear()

        source = self._source(place)
        num_examples = 0
        for item in source.examples(block.rows(), source.reader(place.format)):
            if not isinstance(item, Example):
                continue
            use = row_uses[num_examples] if num_examples < len(row_uses) else 0
            num_examples += 1
            if use:
                made.num_wanted += 1
                wanted.append((use, item))
                if len(wanted) == _BATCH_ROWS:
                    flush()
            else:
                alive()
        flush()
        made.is_changed = num_examples != len(row_uses)
        made.train, made.eval = train.joined(place.name, keep), evaluated.joined(place.name, keep)
        made.eval_rows = "".join(lines)
        return made

    def _counted(
        self, place: str, example: Example, tokens: Tokens | JobError, statistics: Statistics, made: Tokenised
    ) -> bool:
        """Counts the row and reports its problems. Returns False if it is dropped."""
        if isinstance(tokens, JobError):
            if made.template_fault is None and tokens.reason in _TEMPLATE_FAULTS:
                made.template_fault = tokens
            if effect_of(tokens) == "leaves_out":
                problem = RowProblem(example.row, "", tokens.reason, tokens.message.rstrip("."), "leaves_out")
            else:
                problem = RowProblem(example.row, "", tokens.reason, f"{tokens.message} {tokens.advice}")
            made.report.add(place, problem)
            return False
        for finding in tokens.findings:
            made.report.add(place, finding)
        made.num_tokenised += 1
        if tokens.num_uncut > LONG:
            longest = (tokens.num_uncut, place, example.row)
            (heapq.heappush if len(made.longest) < LONGEST else heapq.heappushpop)(made.longest, longest)
        hyper = self._config.hyperparameters
        limit = hyper.max_length
        if tokens.too_long:
            statistics.num_too_long += 1
            message = f"has {tokens.num_uncut:,} tokens, more than max_length = {limit:,}; dropped"
            _warn(made.report, place, example.row, "TOO_LONG", message)
            return False
        if not tokens.trains:
            statistics.num_dropped += 1
            statistics.num_cut_off += tokens.truncated
            if tokens.truncated:
                made.report.mark(place, CUT_OFF, example.row)
            kept = f" within max_length = {limit:,}, which truncates its answer" if tokens.truncated else ""
            message = f"has no trained tokens{kept}; dropped"
            _warn(made.report, place, example.row, "NO_TRAINED_TOKENS", message)
            return False
        statistics.count(len(tokens.input_ids), tokens.num_trained, tokens.truncated)
        for turn in example.messages:
            statistics.roles[turn["role"]] = statistics.roles.get(turn["role"], 0) + 1
        script = script_of(example.expected_output or example.completion)
        statistics.scripts[script] = statistics.scripts.get(script, 0) + 1
        if is_sampled(example.row):
            for role, text in texts_of(example):
                languages = statistics.languages.setdefault(role, {})
                language = language_of(text)
                languages[language] = languages.get(language, 0) + 1
        # Of a streamed corpus only held-out rows are, whose evaluation ends there.
        if tokens.truncated and not hyper.streaming:
            lost = "start" if hyper.truncation == "keep_end" else "end"
            message = f"has {tokens.num_uncut:,} tokens; its {lost} is truncated at max_length = {limit:,}"
            _warn(made.report, place, example.row, "TRUNCATED", message)
        return True

    def _source(self, place: BlockSource) -> Source:
        if place.name not in self._sources:
            self._sources[place.name] = Source(place.name, place.source, self._config.system_prompt)
        return self._sources[place.name]

    def _look_for_control_tokens(self, place: str, example: Example, report: Report) -> None:
        for column, text in example.texts():
            if found := self._tokenizer.control.search(text):
                message = (
                    f"has the control token {found[0]} in its text; the model reads it as the end of a turn or of a "
                    "text; remove it if the chat template was already applied"
                )
                report.add(place, RowProblem(example.row, column, "CONTROL_TOKEN", message), "warning")
                return


class _Rows:
    def __init__(self) -> None:
        self._tokens: list[Tokens] = []
        self._numbers = array("I")

    def add(self, tokens: Tokens, copies: int, number: int) -> None:
        self._tokens += [tokens] * copies
        self._numbers.extend([number] * copies)

    def joined(self, place: str, keep: bool) -> TokenRows | None:
        """Returns the rows, or None if there are none. Without `keep`, only their lengths are filled."""
        if not self._tokens:
            return None
        nothing = numpy.empty(0, numpy.int32)
        return TokenRows(
            numpy.concatenate([one.input_ids for one in self._tokens]) if keep else nothing,
            numpy.concatenate([one.labels for one in self._tokens]) if keep else nothing,
            numpy.array([len(one.input_ids) for one in self._tokens], numpy.int32),
            place,
            numpy.array(self._numbers, numpy.uint32),
        )


def _warn(report: Report, place: str, row: int, reason: str, message: str) -> None:
    report.add(place, RowProblem(row, "", reason, message), "warning")


def eval_row(example: Example, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns a held-out row as text, for evaluation and display."""
    prompt = prompt_text(example, tokenizer)
    if example.is_chat and example.messages[-1].get("tool_calls"):
        expected = _called(example, prompt, tokenizer)
    elif example.is_chat or example.prompt:
        expected = example.expected_output
    else:
        whole = tokenizer.decode(example.input_ids) if example.is_tokenized else example.completion
        expected = whole[len(prompt) :]
    return {
        "instruction": example.instruction or prompt,
        "input": example.input,
        "expected_output": expected,
        "messages": example.messages[:-1],
        "prompt": prompt,
        "item": _as_json(example.columns),
        "has_question": example.is_chat or bool(example.prompt),
        "answer": example.messages[-1] if example.is_chat else None,
        "tools": example.tools,
    }


def _as_json(columns: Mapping[str, Any]) -> Any:
    """Returns the columns as JSON can hold them: a date becomes text, half a surrogate pair a question mark."""
    text = json.dumps(columns, default=str, ensure_ascii=False)
    return json.loads(text.encode("utf-8", "replace"))


def _called(example: Example, prompt: str, tokenizer: Tokenizer) -> str:
    """Returns the last answer with its tool calls as the template writes them, without the token that ends the turn."""
    whole = tokenizer.render(example.messages, tools=example.tools)
    # With some templates, the rendered conversation does not start with the text of the generation prompt.
    same = next(
        (at for at, (ours, theirs) in enumerate(zip(whole, prompt, strict=False)) if ours != theirs), len(prompt)
    )
    written = whole[same:].strip()
    ends = [match for match in tokenizer.control.finditer(written) if match.end() == len(written)]
    return written[: ends[-1].start()].rstrip() if ends else written
