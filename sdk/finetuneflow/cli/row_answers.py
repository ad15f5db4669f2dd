"""Answers to the rows of a file: several are asked at a time, and what was answered is kept however the run ends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, TypeVar

from finetuneflow.cli.answer_file import AnswerFile
from finetuneflow.cli.asked_rows import AskedRow
from finetuneflow.cli.exits import DETACHED, CommandFailed
from finetuneflow.errors import FineTuneFlowError, InvalidArgument, Violation

_ROWS_AT_ONCE = 8
"""Rows that are answered together; an evaluator answers them in one batch."""
_OF_A_ROW = {"prompt", "system_prompt"}
"""Fields of a request that come from the row."""

AnswerT = TypeVar("AnswerT")


class RowAnswers(Generic[AnswerT]):
    """One run over the rows of a file."""

    def __init__(
        self, source: Path, rows: Sequence[AskedRow], problems: Mapping[int, str], out: AnswerFile | None
    ) -> None:
        """`problems` are those of rows that cannot be asked, by their numbers."""
        self._source, self._out = source, out
        self._problems = dict(problems)
        self._lines: dict[int, dict[str, Any]] = {}
        """Line that is written for each answered row."""
        self._earlier, self._waiting = self._divided(rows)

    @property
    def num_earlier(self) -> int:
        """Number of rows that an earlier run has answered."""
        return len(self._earlier)

    @property
    def num_answered(self) -> int:
        """Number of rows with an answer, those of an earlier run among them."""
        return len(self._earlier) + len(self._lines)

    def run(
        self,
        ask: Callable[[AskedRow], AnswerT],
        text: Callable[[AnswerT], str],
        show: Callable[[dict[str, Any], AnswerT], None],
        stop: Callable[[], None],
    ) -> None:
        """Asks the rows that no earlier run has answered. `text` returns the text of an answer, and `show` gets each
        answer with what is written for it, in the order of the rows. `stop` ends answers that are being generated.

        Raises CommandFailed at Ctrl-C, InvalidArgument if rows cannot be answered, after all others were, and what
        `ask` raises for another reason than its row. What was answered is written in any case.
        """
        answers: dict[int, AnswerT] = {}
        unseen = [row.number for row in self._waiting]
        ended = False
        threads = ThreadPoolExecutor(_ROWS_AT_ONCE)
        asked: dict[Future[AnswerT], AskedRow] = {}
        try:
            asked |= {threads.submit(ask, row): row for row in self._waiting}
            for future in as_completed(asked):
                row = asked[future]
                if (answer := self._answer(row, future)) is not None:
                    self._add(row, text(answer))
                    answers[row.number] = answer
                while unseen and (unseen[0] in answers or unseen[0] in self._problems):
                    number = unseen.pop(0)
                    if number in answers:
                        show(self._lines[number], answers.pop(number))
            ended = True
        except KeyboardInterrupt:
            self._add_done(asked, text, answers)
            raise CommandFailed(f"Interrupted. {self._state()}", code=DETACHED, advice=self._how_to_go_on()) from None
        except FineTuneFlowError as error:
            self._add_done(asked, text, answers)
            if self.num_answered:
                error.advice = "\n".join(filter(None, (error.advice, self._state(), self._how_to_go_on())))
            raise
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            if not ended:
                stop()
            for number in unseen:
                if number in answers and number in self._lines:
                    show(self._lines[number], answers[number])
            self._end(early=not ended)
        if self._problems:
            raise self._bad_rows()

    def _divided(self, rows: Iterable[AskedRow]) -> tuple[dict[int, dict[str, Any]], list[AskedRow]]:
        """Returns what an earlier run has written, by the numbers of the rows, and the rows without an answer."""
        written = defaultdict(list)
        for line in self._out.begin() if self._out else ():
            written[_question(line)].append(line)
        earlier, waiting = {}, []
        for row in rows:
            if same := written[_question(_line(row, ""))]:
                earlier[row.number] = same.pop(0)
            else:
                waiting.append(row)
        return earlier, waiting

    def _answer(self, row: AskedRow, future: Future[AnswerT]) -> AnswerT | None:
        """Returns None if the row cannot be answered."""
        try:
            return future.result()
        except InvalidArgument as error:
            if not error.violations or not {each.field for each in error.violations} <= _OF_A_ROW:
                raise
            self._problems[row.number] = error.message.rstrip(".")
            return None

    def _add(self, row: AskedRow, text: str) -> None:
        self._lines[row.number] = _line(row, text)
        if self._out:
            self._out.add(self._lines[row.number])

    def _add_done(
        self,
        asked: Mapping[Future[AnswerT], AskedRow],
        text: Callable[[AnswerT], str],
        answers: dict[int, AnswerT],
    ) -> None:
        """Adds the answers that are complete and were not added yet."""
        for future, row in asked.items():
            if row.number not in self._lines and future.done() and future.exception() is None:
                answers[row.number] = future.result()
                self._add(row, text(answers[row.number]))

    def _end(self, *, early: bool) -> None:
        if self._out is None:
            return
        if not self.num_answered:
            self._out.drop()
            return
        lines = self._earlier | self._lines
        complete = not early and not self._problems
        self._out.end([lines[number] for number in sorted(lines)], early=early, complete=complete)

    def _state(self) -> str:
        open_rows = {row.number for row in self._waiting} - self._lines.keys() | self._problems.keys()
        where = f", in {self._out.path_if_early}" if self._out and self.num_answered else ""
        return f"{self.num_answered:,} rows are answered{where}. Not answered: {_ranges(open_rows)}."

    def _how_to_go_on(self) -> str:
        if self._out is None:
            return "With --out FILE, the same command would continue there."
        return "The same command asks only the rows that are not answered."

    def _bad_rows(self) -> InvalidArgument:
        found = [
            Violation(f"{self._source.name} row {number}", self._problems[number]) for number in sorted(self._problems)
        ]
        if len(found) == 1:
            message = f"Row {min(self._problems)} of {self._source}: {found[0].description}."
        else:
            message = f"{len(found):,} rows of {self._source} cannot be answered: {_ranges(self._problems)}."
        advice = ""
        if self.num_answered:
            where = f", in {self._out.path}" if self._out else ""
            advice = f"The other {self.num_answered:,} are answered{where}."
            advice += " Correct the rows; the same command asks only these then." if self._out else ""
        return InvalidArgument(message, reason="INVALID_REQUEST", violations=found, advice=advice)


def _line(row: AskedRow, answer: str) -> dict[str, Any]:
    return {
        "system_prompt": row.system_prompt,
        "user_prompt": row.prompt,
        "assistant_response": answer,
        "ground_truth": row.ground_truth,
    }


def _question(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what a row asks; rows of an earlier run are known by it, since numbers change with the file."""
    return tuple(repr(line.get(name)) for name in ("system_prompt", "user_prompt", "ground_truth"))


def _ranges(numbers: Collection[int]) -> str:
    """Formats row numbers: `row 2`, or `rows 2, 5 and 7 to 9`."""
    texts: list[str] = []
    for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        together = [str(number) for _, number in run]
        texts += [f"{together[0]} to {together[-1]}"] if len(together) > 2 else together
    joined = " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))
    return f"{'row' if len(numbers) == 1 else 'rows'} {joined}" if numbers else "none"
