"""Collects the problems of a job's data, counts them by kind, and decides whether the data is refused."""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy
from numpy.typing import NDArray

from engine.data.rows import RowProblem
from engine.errors import JobError, Violation

SHOWN = 50
"""Maximum number of problems listed in a refusal; the rest is counted."""
LISTED = 1000
"""Maximum number of problems listed in a report."""
LISTED_OF_A_KIND = 100
"""Maximum number of problems listed per source and kind, so that a frequent kind does not hide a rare one."""
LEFT_OUT_SHARE = 0.1
"""Maximum share of a source's rows that are dropped as incomplete. A larger share is caused by a wrong column or a
faulty file; the data is then refused before the training costs anything."""

INCOMPLETE = "INCOMPLETE"
"""Mark of rows that are dropped as incomplete, whatever they lack."""

Severity = Literal["error", "warning"]
Verdict = Literal["ok", "warnings", "refused"]


@dataclass(frozen=True)
class Problem:
    """A problem of one row of a source, or, with row 0, of the source as a whole."""

    source: str
    """The source's path in the spec, such as `training_data[0]`."""
    row: int
    column: str
    reason: str
    message: str
    """Description of the problem and how to correct it."""
    severity: Severity
    undecided: bool = field(default=False, repr=False)
    """True until `leave_out` decides whether the row is dropped or refuses the data."""


@dataclass(frozen=True)
class Count:
    """Number of problems of one kind in a source."""

    source: str
    reason: str
    severity: Severity
    count: int


class Report:
    """The problems of all datasets of a job."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        """The first problems of each kind."""
        self._counts: dict[tuple[str, str, Severity], int] = {}
        self._undecided: Counter[tuple[str, str]] = Counter()
        self._left_out: Counter[str] = Counter()
        self._num_refused = 0
        self._rows: dict[tuple[str, str], array[int]] = {}
        self._files: dict[str, str] = {}

    def name_file(self, source: str, filename: str) -> None:
        """Sets the name of a source's file, which a refusal names if the job has several."""
        self._files[source] = filename

    def add(self, source: str, problem: RowProblem, severity: Severity = "error") -> None:
        """Adds a problem; `source` is a field path, such as `training_data[0]`. An incomplete row is an error until
        `leave_out` knows how many there are."""
        incomplete = problem.effect == "leaves_out"
        severity = "warning" if problem.effect == "warns" else severity
        kind = (source, problem.reason, severity)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._undecided[source, problem.reason] += incomplete
        self.mark(source, INCOMPLETE if incomplete else problem.reason, problem.row)
        self._list(
            Problem(source, problem.row, problem.column, problem.reason, problem.message, severity, incomplete),
            self._counts[kind],
        )

    def mark(self, source: str, what: str, row: int) -> None:
        """Records the row under a mark, in four bytes. `add` marks the row of each problem with its reason."""
        self._rows.setdefault((source, what), array("I")).append(row)

    def marked(self, source: str, what: str) -> NDArray[numpy.uint32]:
        """Returns the rows of a source with a mark: a reason, INCOMPLETE or another one. A row that was marked several
        times is repeated."""
        return numpy.array(self._rows.get((source, what), ()), numpy.uint32)

    def count_more(self, source: str, reason: str, count: int) -> None:
        """Counts further warnings of a kind without listing them."""
        if count:
            kind: tuple[str, str, Severity] = (source, reason, "warning")
            self._counts[kind] = self._counts.get(kind, 0) + count

    def leave_out(self, source: str, num_rows: int) -> None:
        """Lowers the problems of incomplete rows to warnings if at most LEFT_OUT_SHARE of the source's `num_rows` rows
        are incomplete. Call it again after further problems were added."""
        waiting = {reason: count for (at, reason), count in self._undecided.items() if at == source and count}
        if not waiting:
            return
        found = self._left_out[source] + sum(waiting.values())
        few = found <= LEFT_OUT_SHARE * num_rows
        said = "dropped"
        if not few:
            share = f"at most {LEFT_OUT_SHARE:.0%} are dropped automatically"
            said = f"correct or drop the row ({found:,} of {num_rows:,} rows are incomplete; {share})"
        severity: Severity = "warning" if few else "error"
        for index, problem in enumerate(self.problems):
            if problem.source == source and problem.undecided:
                message = f"{problem.message}; {said}"
                self.problems[index] = replace(problem, message=message, severity=severity, undecided=False)
        for reason, count in waiting.items():
            del self._undecided[source, reason]
            if few:
                self._lower(source, reason, count)
        if few:
            self._left_out[source] = found
        else:
            del self._rows[source, INCOMPLETE]

    def num_left_out(self, source: str) -> int:
        """Returns the number of incomplete rows of a source that were dropped."""
        return self._left_out[source]

    def _lower(self, source: str, reason: str, count: int) -> None:
        self._counts[source, reason, "warning"] = self._counts.get((source, reason, "warning"), 0) + count
        self._counts[source, reason, "error"] -= count
        if not self._counts[source, reason, "error"]:
            del self._counts[source, reason, "error"]

    def _list(self, problem: Problem, nth: int) -> None:
        room = LISTED if problem.severity == "error" else LISTED // 2
        if nth <= LISTED_OF_A_KIND and len(self.problems) < room:
            self.problems.append(problem)

    def merge(self, other: "Report") -> None:
        """Appends the problems and counts of another report."""
        listed: dict[tuple[str, str, Severity], int] = {}
        for problem in other.problems:
            kind = (problem.source, problem.reason, problem.severity)
            listed[kind] = listed.get(kind, 0) + 1
            self._list(problem, self._counts.get(kind, 0) + listed[kind])
        self._undecided += other._undecided
        for kind, count in other._counts.items():
            self._counts[kind] = self._counts.get(kind, 0) + count
        for mark, rows in other._rows.items():
            self._rows.setdefault(mark, array("I")).extend(rows)

    def arrange(self) -> None:
        """Sorts the problems of each source by row."""
        places = {source: place for place, source in enumerate(dict.fromkeys(p.source for p in self.problems))}
        self.problems.sort(key=lambda problem: (places[problem.source], problem.row))

    def refused(self, source: str, error: JobError) -> None:
        """Adds the error for which a source, or the job's data as a whole, cannot be read at all."""
        message = f"{error.message} {error.advice}".strip()
        self._num_refused += 1
        self.add(source, RowProblem(0, "", error.reason, message))

    @property
    def num_errors(self) -> int:
        return sum(count for (_, _, severity), count in self._counts.items() if severity == "error")

    @property
    def num_problems(self) -> int:
        return sum(self._counts.values())

    @property
    def verdict(self) -> Verdict:
        """Refused if a job with this data would be."""
        return "refused" if self.num_errors else "warnings" if self._counts else "ok"

    def ordered(self) -> list[Problem]:
        """Returns the listed problems: those that refuse the data, those that drop or change rows, then duplicates."""
        return sorted(self.problems, key=_rank)

    def counts(self) -> list[Count]:
        """Returns the counts by source and kind: errors before warnings, the most frequent first."""
        found = [Count(*kind, count) for kind, count in self._counts.items()]
        return sorted(found, key=lambda count: (count.severity, -count.count))

    def refuse(self) -> None:
        """Raises JobError("BAD_DATA") with the first errors, if there are any."""
        errors = self._errors()
        if errors:
            raise self._bad(errors)

    def refusal(self) -> JobError | None:
        """Returns the error with which a job would be refused: BAD_DATA, or the reason why a source cannot be read at
        all; None if the data is accepted."""
        errors = self._errors()
        # A problem of the source as a whole is often the cause of the problems of its rows.
        if first := next((problem for problem in errors if problem.row == 0), None):
            return JobError(first.reason, first.message, "", [Violation(f"spec.{first.source}", first.message)])
        return self._bad(errors) if errors else None

    def _errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    def as_dict(self, **more: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns the content of validation_report.json."""
        return {
            "verdict": self.verdict,
            "num_problems": self.num_problems,
            "counts": [asdict(count) for count in self.counts()],
            "problems": [_told(problem) for problem in self.ordered()],
            **more,
        }

    def _bad(self, errors: Sequence[Problem]) -> JobError:
        needed = {_advice(problem) for problem in errors}
        advice = " ".join(each for each in (_TEMPLATE_ADVICE, _MODEL_ADVICE, _ADVICE) if each in needed)
        return JobError("BAD_DATA", self._message(errors[0]), advice, self._violations(errors[:SHOWN]))

    def _message(self, first: Problem) -> str:
        wrong = self.num_errors - self._num_refused
        kinds: Counter[str] = Counter()
        for (_, reason, severity), count in self._counts.items():
            kinds[reason] += count if severity == "error" else 0
        named = ", ".join(f"{count:,} {reason}" for reason, count in kinds.most_common() if count)
        more = f" {wrong:,} rows have errors: {named}." if wrong > 1 else ""
        end = "" if first.message.endswith((".", "?", "!")) else "."
        return f"{first.source} row {first.row}{self._of_file(first)}: {first.message}{end}{more}"

    def _violations(self, problems: Sequence[Problem]) -> list[Violation]:
        return [
            Violation(f"{p.source} row {p.row}", f"row {p.row}{self._of_file(p)}: {p.message} [{p.reason}]")
            for p in problems
        ]

    def _of_file(self, problem: Problem) -> str:
        """Returns the file of a problem as part of a sentence; empty if the job has only one."""
        return f" of {self._files[problem.source]}" if len(self._files) > 1 and problem.source in self._files else ""


def _rank(problem: Problem) -> int:
    if problem.severity == "error":
        return 0
    return 2 if problem.reason in _HARMLESS else 1


def _advice(problem: Problem) -> str:
    if (problem.column, problem.reason) in _OF_TEMPLATES:
        return _TEMPLATE_ADVICE
    return _MODEL_ADVICE if problem.reason in _OF_THE_MODEL else _ADVICE


def _told(problem: Problem) -> dict[str, Any]:
    values = asdict(problem)
    del values["undecided"]
    return values


_ADVICE = (
    "Correct the listed rows in the file, or remove them. An uploaded dataset cannot be changed: upload the corrected "
    "file as a new dataset."
)
_TEMPLATE_ADVICE = "Correct the row template: the violations list the rows and the errors."
_MODEL_ADVICE = "The rows need no change: the chat template does not support them."
_HARMLESS = {"DUPLICATE_ROW", "DUPLICATE_EXAMPLE"}
_OF_THE_MODEL = {"TEMPLATE_WITHOUT_TOOLS", "TEMPLATE_NOT_INCREMENTAL"}
_OF_TEMPLATES = {("template", "TEMPLATE_FAILED"), ("template", "TEMPLATE_NOT_JSON")}
"""Column and reason of the problems of row templates; those of chat templates have no column."""
