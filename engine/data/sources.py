"""Reads one dataset of a job as examples, with its row template, mapping and format."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from engine.config.job import DataSource, JobConfig
from engine.data.formats import Example, RowReader
from engine.data.row_templates import RowTemplate
from engine.data.rows import Row, RowProblem
from engine.errors import JobError, LimitExceeded, Violation

UNWRITTEN = "TEMPLATE_WROTE_NOTHING"
"""Reason of a row for which the row template writes nothing. Intended by the caller; reported so that the counts add
up."""


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Names the source at `place` in a JobError of the block that is about a file and names no field: several files may
    have one name, in different folders."""
    try:
        yield
    except LimitExceeded:
        raise
    except JobError as error:
        if error.violations:
            raise
        where = Violation(f"spec.{place}.dataset", error.message)
        raise JobError(error.reason, error.message, error.advice, [where]) from error


class Source:
    """One dataset of a job. Its rows are passed in, from the whole file or a block of it."""

    def __init__(self, place: str, source: DataSource, system_prompt: str | None) -> None:
        """`place` is its path in the spec. Raises JobError("BAD_TEMPLATE")."""
        self.place, self.given = place, source
        self._system_prompt = system_prompt
        self._template = None if source.template is None else RowTemplate(source.template, f"spec.{place}.template")

    @property
    def is_templated(self) -> bool:
        """True if the source has a row template, which decides how many examples a row makes."""
        return self._template is not None

    @classmethod
    def all_of(cls, name: str, listed: Iterable[DataSource], config: JobConfig) -> "list[Source]":
        """Returns the sources of a list in the spec; `name` is the path of the list."""
        return [cls(f"{name}[{index}]", source, config.system_prompt) for index, source in enumerate(listed)]

    def reader(self, format_: str = "") -> RowReader:
        """Returns a reader for the format that the spec names, else for `format_`, else for the format of the first
        row."""
        mapping = {str(ours): theirs for ours, theirs in self.given.mapping.items()}
        return RowReader(mapping, self._system_prompt, self.given.format or format_)

    def examples(self, rows: Iterable[Row | RowProblem], reader: RowReader) -> Iterator[Example | RowProblem]:
        """Yields examples and problems in the order of the rows; the warnings about a row come before its
        example. Raises the JobErrors of templates and formats."""
        for row in rows:
            if isinstance(row, RowProblem):
                yield row
                continue
            written = False
            for made in self._template.apply(row) if self._template else (row,):
                written = True
                if isinstance(made, RowProblem):
                    yield made
                else:
                    yield from reader.read(made)
            if not written:
                message = "the row template writes nothing for this row; dropped"
                yield RowProblem(row.number, "template", UNWRITTEN, message, "warns")

    def refuse_useless(self, filename: str, reader: RowReader, num_items: int) -> None:
        """Checks the source after all rows were read; `num_items` is the number of examples and problems.

        Raises JobError: EMPTY_DATASET, or UNKNOWN_COLUMN if no row had a mapped column.
        """
        if not num_items:
            named, what, advice = "dataset", "has no rows", "Provide a file that has rows."
            if self._template:
                named, what = "template", "has no row for which the template writes an example"
                advice = "Correct the template, or provide another file."
            where = Violation(f"spec.{self.place}.{named}", f"{filename} {what}.")
            raise JobError("EMPTY_DATASET", f"{self.place}: {filename} {what}.", advice, [where])
        if unseen := reader.unseen_columns():
            violations = [Violation(f"spec.{self.place}.mapping.{ours}", text) for ours, text in unseen.items()]
            first = violations[0]
            raise JobError("UNKNOWN_COLUMN", f"{first.field}: {first.description}", "Correct the mapping.", violations)
