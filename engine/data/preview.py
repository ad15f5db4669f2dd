"""Shows rows as training reads them: their text, tokens and labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.config.job import JobConfig
from engine.data.files import read_rows
from engine.data.rows import RowProblem
from engine.data.sources import Source
from engine.data.spans import IGNORED, effect_of, tokens_of, whole_text
from engine.data.template_limits import ends_work
from engine.data.tokenizer import Tokenizer
from engine.errors import JobError

_LONGEST_CHARACTER = 8
"""Maximum number of tokens that form one character; a longer run is invalid UTF-8."""


@dataclass(frozen=True)
class Preview:
    """One example, or one problem of its row."""

    row: int
    text: str = ""
    """Text of its tokens before truncation."""
    tokens: list[str] = field(default_factory=list)
    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    truncated: bool = False
    dropped: bool = False
    """True if training drops the example."""
    problem: RowProblem | None = None

    def trained_spans(self) -> list[tuple[int, int]]:
        """Returns the runs of trained tokens as half-open index ranges."""
        spans: list[tuple[int, int]] = []
        for index, label in enumerate(self.labels):
            if label == IGNORED:
                continue
            if spans and spans[-1][1] == index:
                spans[-1] = (spans[-1][0], index + 1)
            else:
                spans.append((index, index + 1))
        return spans


def preview(config: JobConfig, tokenizer_dir: Path, path: Path, first_row: int) -> Iterator[Preview]:
    """Yields previews of the first source's rows from number `first_row` on, reading only as far as the caller
    iterates.

    Raises JobError for a file, template or tokenizer that cannot be used at all.
    """
    tokenizer = Tokenizer(tokenizer_dir, config.chat_template)
    hyper = config.hyperparameters
    source = Source("training_data[0]", config.training_data[0], config.system_prompt)
    reader = source.reader()
    num_items = 0
    for item in source.examples(read_rows(path, hyper.max_length), reader):
        num_items += not (isinstance(item, RowProblem) and item.effect == "warns")
        if item.row < first_row:
            continue
        if isinstance(item, RowProblem):
            yield Preview(item.row, problem=item)
            continue
        try:
            tokens = tokens_of(item, tokenizer, hyper.loss_on, hyper.max_length, hyper.truncation)
        except JobError as error:
            if ends_work(error):
                raise
            problem = RowProblem(item.row, "", error.reason, f"{error.message} {error.advice}", effect_of(error))
            yield Preview(item.row, problem=problem)
            continue
        for finding in tokens.findings:
            yield Preview(item.row, problem=finding)
        ids = tokens.input_ids.tolist()
        pieces = list(_pieces(ids, tokenizer))
        dropped = tokens.too_long or not tokens.trains
        text = whole_text(item, tokenizer)
        yield Preview(item.row, text, pieces, ids, tokens.labels.tolist(), tokens.truncated, dropped)
    source.refuse_useless(path.name, reader, num_items)


def _pieces(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Yields the text of each token. If several tokens form one character, the last one has it; the others are
    empty."""
    pending: list[int] = []
    for index, token in enumerate(ids, 1):
        pending.append(token)
        text = tokenizer.decode(pending)
        if text.endswith("\ufffd") and len(pending) < _LONGEST_CHARACTER and index < len(ids):
            yield ""
        else:
            yield text
            pending.clear()
