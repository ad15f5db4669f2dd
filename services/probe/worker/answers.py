"""How a child that is asked one question answers it: answer.pb, or error.json for what the caller has to mend."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message

from engine.errors import JobError, Violation

Answer = TypeVar("Answer", bound=Message)


@contextlib.contextmanager
def answering(out_dir: Path) -> Iterator[Callable[[Message], None]]:
    """Gives out what writes the answer; a JobError inside is one, too."""
    out_dir.mkdir(parents=True, exist_ok=True)
    try:
        yield lambda answer: _write(out_dir, answer)
    except JobError as error:
        text = json.dumps(
            {
                "reason": error.reason,
                "message": error.message,
                "advice": error.advice,
                "violations": [asdict(violation) for violation in error.violations],
            }
        )
        (out_dir / "error.json").write_text(text, encoding="utf-8")


def _write(out_dir: Path, answer: Message) -> None:
    (out_dir / "answer.pb").write_bytes(answer.SerializeToString())


def read_answer(out_dir: Path, answer: Answer) -> Answer:
    """What the child wrote, in `answer`. Raises the JobError that it met."""
    refusal = out_dir / "error.json"
    if refusal.exists():
        said = json.loads(refusal.read_text("utf-8"))
        violations = [Violation(**violation) for violation in said["violations"]]
        raise JobError(said["reason"], said["message"], said["advice"], violations)
    answer.ParseFromString((out_dir / "answer.pb").read_bytes())
    return answer
