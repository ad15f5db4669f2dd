"""Collects what is wrong with rows, and refuses the data when anything is."""

from collections.abc import Sequence

from engine.data.rows import RowProblem
from engine.errors import JobError, Violation

SHOWN = 50
"""Problems named one by one; the rest is counted."""


class Problems:
    """The problems of all datasets of a job."""

    def __init__(self) -> None:
        self.count = 0
        self._shown: list[tuple[str, RowProblem]] = []

    def add(self, place: str, problem: RowProblem) -> None:
        """`place` is the source's field path, such as `training_data[0]`."""
        self.count += 1
        if len(self._shown) < SHOWN:
            self._shown.append((place, problem))

    def refuse(self) -> None:
        """Raises JobError("BAD_DATA") naming the first problems, when there are any."""
        if self.count:
            raise JobError("BAD_DATA", self._message(), _ADVICE, self._violations())

    def _message(self) -> str:
        place, first = self._shown[0]
        more = f" In all {self.count:,} rows are wrong." if self.count > 1 else ""
        return f"{place} row {first.row}: {first.message}.{more}"

    def _violations(self) -> Sequence[Violation]:
        return [Violation(f"{place} row {p.row}", f"row {p.row}: {p.message} [{p.reason}]") for place, p in self._shown]


_ADVICE = "Mend the named rows or leave them out, upload the file again and create the job with the new dataset id."
