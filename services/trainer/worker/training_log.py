"""`training_log.json`: the log and evaluation events of a training, one JSON object per line."""

import json
import math
import shutil
from pathlib import Path
from typing import Final

from finetuneflow.v1.event_pb2 import Eval, Log

NAME: Final = "training_log.json"

_OMITTED = frozenset({"total_steps", "eta_seconds", "best", "evaluations_without_improvement", "extras"})


class TrainingLog:
    """Grows by one whole line at a time, so that it can be followed and parsed at any moment.

    Each checkpoint has a copy, with which a resumed attempt begins: steps that were lost and are repeated stand once.
    """

    def __init__(self, folder: Path, resume_from: Path | None) -> None:
        """Begins the file in `folder`, with the lines of the checkpoint `resume_from`."""
        self._file = folder / NAME
        earlier = resume_from / NAME if resume_from else None
        if earlier and earlier.is_file():
            shutil.copyfile(earlier, self._file)
        else:
            # A checkpoint of a version without logs: the lines before it are in the history of the job only.
            self._file.write_bytes(b"")

    def add(self, event: Log | Eval) -> None:
        """Appends an event under the names of its fields. A value that is not finite is null, as in all JSON."""
        values = {
            field.name: getattr(event, field.name)
            for field in event.DESCRIPTOR.fields
            if field.name not in _OMITTED and (not field.has_presence or event.HasField(field.name))
        } | dict(event.extras)
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._file.open("ab", buffering=0) as file:
            file.write(json.dumps(finite).encode() + b"\n")

    def copy_to(self, checkpoint: Path) -> None:
        """Writes the lines so far into a checkpoint."""
        shutil.copyfile(self._file, checkpoint / NAME)
