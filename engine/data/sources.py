"""One dataset of a job, as examples: its file, template, mapping and format together."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from engine.config.job import DataSource, JobConfig
from engine.data.files import read_rows
from engine.data.formats import Example, RowReader
from engine.data.row_templates import RowTemplate
from engine.data.rows import RowProblem
from engine.errors import JobError, Violation


class Source:
    """It can be read any number of times."""

    def __init__(self, place: str, source: DataSource, path: Path, config: JobConfig) -> None:
        """`place` is its path in the spec. Raises JobError("BAD_TEMPLATE")."""
        self.place, self.path = place, path
        self.num_duplicates = 0
        self.num_rows = 0
        """Those read last, of what a template makes each example; whole when `read` has come to the end."""
        self.format = ""
        self.system_prompt = config.system_prompt
        self.weight = source.weight
        self._source = source
        self._max_length = config.hyperparameters.max_length
        self._template = None if source.template is None else RowTemplate(source.template, f"spec.{place}.template")

    @classmethod
    def all_of(
        cls, name: str, listed: Sequence[DataSource], paths: Mapping[str, Path], config: JobConfig
    ) -> "list[Source]":
        return [cls(f"{name}[{index}]", source, paths[source.dataset], config) for index, source in enumerate(listed)]

    def read(self) -> Iterator[Example | RowProblem]:
        """Examples and problems in the order of the file; what was mended of a row, before it.

        Raises JobError: EMPTY_DATASET, UNKNOWN_COLUMN, and what files, formats and templates raise.
        """
        mapping = {str(ours): theirs for ours, theirs in self._source.mapping.items()}
        reader = RowReader(mapping, self.system_prompt, self._source.format)
        self.num_rows = 0
        for row in read_rows(self.path, self._max_length):
            if isinstance(row, RowProblem):
                self.num_rows += 1
                yield row
                continue
            for made in self._template.apply(row) if self._template else (row,):
                self.num_rows += 1
                if isinstance(made, RowProblem):
                    yield made
                else:
                    yield from reader.read(made)
        self.format = reader.format
        if not self.num_rows:
            message = f"{self.place}: {self.path.name} has no rows{' that the template keeps' * bool(self._template)}."
            where = Violation(f"spec.{self.place}.dataset", "The file has no rows.")
            raise JobError("EMPTY_DATASET", message, "Upload a file that has rows.", [where])
        if unseen := reader.unseen_columns():
            violations = [Violation(f"spec.{self.place}.mapping.{ours}", text) for ours, text in unseen.items()]
            first = violations[0]
            raise JobError("UNKNOWN_COLUMN", f"{first.field}: {first.description}", "Correct the mapping.", violations)
