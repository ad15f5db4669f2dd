"""What is wrong with data and what is suspicious about it: collected, counted by kind, refused where it must be."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from engine.data.rows import RowProblem
from engine.errors import JobError, Violation

SHOWN = 50
"""Problems named one by one in a refusal; the rest is counted."""
LISTED = 1000
"""Problems named one by one in a report."""
LISTED_OF_A_KIND = 100
"""So that a rare kind is not lost among a million of another."""
LEFT_OUT_SHARE = 0.1
"""Of a source's rows, up to which incomplete ones are left out. More of them come from a wrong column or a file that
was made wrong, and finding out costs nothing before the training."""

Severity = Literal["error", "warning"]
Verdict = Literal["ok", "warnings", "refused"]


@dataclass(frozen=True)
class Problem:
    """A problem of one row of one source, or with row 0 of the source as a whole."""

    source: str
    """The source's path in the spec, such as `training_data[0]`."""
    row: int
    column: str
    reason: str
    message: str
    """What is wrong and how to mend it."""
    severity: Severity


@dataclass(frozen=True)
class Count:
    """How many problems of one kind a source has."""

    source: str
    reason: str
    severity: Severity
    count: int


@dataclass
class _Undecided:
    """Incomplete rows of a source that is still being read."""

    counts: Counter[str] = field(default_factory=Counter)
    """By reason."""
    listed: list[int] = field(default_factory=list)
    """Where they stand among the problems."""


class Report:
    """The problems of all datasets of a job."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        """The first ones of each kind."""
        self._counts: dict[tuple[str, str, Severity], int] = {}
        self._left_out: Counter[str] = Counter()
        self._undecided: dict[str, _Undecided] = {}

    def add(self, source: str, problem: RowProblem, severity: Severity = "error") -> None:
        """`source` is its field path, such as `training_data[0]`. An incomplete row is an error until `leave_out`
        knows how many of them there are."""
        if problem.effect == "warns":
            severity = "warning"
        kind = (source, problem.reason, severity)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        listed = len(self.problems)
        if self._counts[kind] <= LISTED_OF_A_KIND and listed < (LISTED if severity == "error" else LISTED // 2):
            self.problems.append(
                Problem(source, problem.row, problem.column, problem.reason, problem.message, severity)
            )
        if problem.effect == "leaves_out":
            undecided = self._undecided.setdefault(source, _Undecided())
            undecided.counts[problem.reason] += 1
            undecided.listed += range(listed, len(self.problems))

    def leave_out(self, source: str, num_rows: int) -> None:
        """Of a source that has so many rows, complete or not: what is incomplete becomes a warning, unless there is
        too much of it. Can be called again when more was found."""
        undecided = self._undecided.get(source)
        if undecided is None:
            return
        found = self._left_out[source] + undecided.counts.total()
        few = found <= LEFT_OUT_SHARE * num_rows
        said = "the row is left out"
        if not few:
            share = f"at most {LEFT_OUT_SHARE:.0%} are left out"
            said = f"mend the row, or drop it ({found:,} of {num_rows:,} rows are incomplete; {share})"
        for index in undecided.listed:
            problem = self.problems[index]
            severity: Severity = "warning" if few else "error"
            self.problems[index] = replace(problem, message=f"{problem.message}; {said}", severity=severity)
        if few:
            for reason, count in undecided.counts.items():
                self._lower((source, reason), count)
            self._left_out[source] = found
        del self._undecided[source]

    def num_left_out(self, source: str) -> int:
        """Incomplete rows of a source."""
        return self._left_out[source]

    def _lower(self, kind: tuple[str, str], count: int) -> None:
        source, reason = kind
        self._counts[source, reason, "warning"] = self._counts.get((source, reason, "warning"), 0) + count
        self._counts[source, reason, "error"] -= count
        if not self._counts[source, reason, "error"]:
            del self._counts[source, reason, "error"]

    def refused(self, source: str, error: JobError) -> None:
        """A source, or the job's data as a whole, that cannot be worked on at all."""
        message = f"{error.message} {error.advice}".strip()
        self.add(source, RowProblem(0, "", error.reason, message))

    @property
    def num_errors(self) -> int:
        return sum(count for (_, _, severity), count in self._counts.items() if severity == "error")

    @property
    def num_problems(self) -> int:
        return sum(self._counts.values())

    @property
    def verdict(self) -> Verdict:
        """Refused: a job on this data would be."""
        return "refused" if self.num_errors else "warnings" if self._counts else "ok"

    def counts(self) -> list[Count]:
        """By source and kind, the most frequent first, errors before warnings."""
        found = [Count(*kind, count) for kind, count in self._counts.items()]
        return sorted(found, key=lambda count: (count.severity, -count.count))

    def refuse(self) -> None:
        """Raises JobError("BAD_DATA") naming the first errors, when there are any."""
        if self.num_errors:
            errors = [problem for problem in self.problems if problem.severity == "error"]
            raise JobError("BAD_DATA", self._message(errors[0]), _ADVICE, _violations(errors[:SHOWN]))

    def as_dict(self, **more: Mapping[str, Any] | None) -> dict[str, Any]:
        """As it stands in validation_report.json."""
        return {
            "verdict": self.verdict,
            "num_problems": self.num_problems,
            "counts": [asdict(count) for count in self.counts()],
            "problems": [asdict(problem) for problem in self.problems],
            **more,
        }

    def _message(self, first: Problem) -> str:
        more = f" In all {self.num_errors:,} rows are wrong." if self.num_errors > 1 else ""
        return f"{first.source} row {first.row}: {first.message}.{more}"


def _violations(problems: Sequence[Problem]) -> list[Violation]:
    return [Violation(f"{p.source} row {p.row}", f"row {p.row}: {p.message} [{p.reason}]") for p in problems]


_ADVICE = "Mend the named rows or leave them out, upload the file again and create the job with the new dataset id."
