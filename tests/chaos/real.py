"""Schedules with the real training child: a tiny model, and the adapter of a training without faults."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.run import adapter_sha256, run_schedule
from tests.chaos.schedule import draw_schedule
from tests.tiny_models import make_tiny_model


@dataclass(frozen=True)
class Real:
    """The shared parts of schedules with the real training child."""

    model: Path
    rows: Path
    reference: str
    """Hash of the adapter of a training without faults."""

    @classmethod
    def prepare(cls, folder: Path) -> Real:
        """Trains once without faults."""
        rows = folder / "rows.jsonl"
        rows.write_text(
            "".join(
                json.dumps({"question": f"What is {n} plus {n}?", "answer": f"The answer is {n + n}."}) + "\n"
                for n in range(200)
            )
        )
        model = make_tiny_model(folder / "tiny")
        schedule = draw_schedule(0, real=True, jobs=1, faults=0)
        done = run_schedule(schedule, folder / "reference", model=model, rows=rows)
        assert done.evidence is not None
        (history,) = done.evidence.histories.values()
        (package,) = (each for each in history.artifacts if each.kind == "export_package")
        return cls(model, rows, adapter_sha256(done.evidence.store / package.tenant / package.path))
