"""`training_log.json` of a followed job: one JSON object per line, which grows as the job trains."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from finetuneflow.resources.event import Event

_OMITTED = frozenset({"total_steps", "eta_seconds", "best", "evaluations_without_improvement", "extras"})


def written(events: Iterable[Event], path: Path | None) -> Iterator[Event]:
    """Yields the events; first writes those with metrics to `path`, a whole line at a time, if one is given.

    Each step stands once: the first event of an attempt that resumes from a checkpoint removes the lines of the steps
    that it repeats.
    """
    with ExitStack() as stack:
        file = stack.enter_context(path.open("wb", buffering=0)) if path else None
        attempt, lines = 0, list[tuple[int, int]]()
        for event in events:
            if file and event.kind in ("log", "eval"):
                step = event.log.step if event.kind == "log" else event.eval.step
                if event.attempt != attempt:
                    attempt = event.attempt
                    while lines and lines[-1][0] >= step:
                        file.seek(lines.pop()[1])
                    file.truncate()
                lines.append((step, file.tell()))
                file.write(_line(event))
            yield event


def _line(event: Event) -> bytes:
    payload = event.log if event.kind == "log" else event.eval
    values = {name: value for name, value in vars(payload).items() if name not in _OMITTED and name != "proto"}
    values |= payload.extras
    finite = {name: value if math.isfinite(value) else None for name, value in values.items() if value is not None}
    return json.dumps(finite).encode() + b"\n"
