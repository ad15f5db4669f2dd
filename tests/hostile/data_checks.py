"""What the system does with a file of rows."""

from functools import cache
from pathlib import Path
from typing import Any

from tests.hostile.artifact import ACCEPTED, Artifact, Write, home_of
from tests.hostile.model_files import Content, put, tokenizer_files

LINE = b'{"question": "Why?", "answer": "Because."}\n'
GOOD = b"".join(b'{"question": "Why %d?", "answer": "Because of %d."}\n' % (n, n) for n in range(40))
TABLE = b"question,answer\n" + b"".join(b"Why %d?,Because of %d.\n" % (n, n) for n in range(40))


@cache
def _tokenizer(home: Path) -> Path:
    folder = home.parent.parent / "tokenizer"
    folder.mkdir(exist_ok=True)
    for name, content in tokenizer_files().items():
        (folder / name).write_bytes(content)
    return folder


def check_rows(path: Path, home: Path, source: dict[str, Any] | None = None, **spec: Any) -> set[str]:
    """Examines a file of rows as a preflight does. Returns the reasons of the errors in its report."""
    from engine.config.job import job_config
    from engine.data.prepare import examine
    from engine.data.validation import Report

    tokenizer = _tokenizer(home)
    data = [{"dataset": "ds_hostile", **(source or {})}]
    config = job_config({"base_model": "m", "training_data": data, **spec})
    report = Report()
    examine(config, tokenizer, {"ds_hostile": path}, lambda _phase, _fraction: None, report)
    return {count.reason for count in report.counts() if count.severity == "error"}


def check_file(folder: Path) -> set[str]:
    """Examines the only file of a folder."""
    (path,) = folder.iterdir()
    return check_rows(path, home_of(folder))


def rows_file(name: str, content: Content, expected: str = ACCEPTED, **limits: Any) -> Artifact:
    """Returns the artifact of a file of rows."""
    return Artifact(name, put(name, content), check_file, expected, **limits)


def written_file(name: str, write: Write, expected: str = ACCEPTED, **limits: Any) -> Artifact:
    """Returns the artifact of a file of rows that a function writes to its path."""
    return Artifact(name, lambda folder: write(folder / name), check_file, expected, **limits)
