"""Models that can be trained on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetuneflow.resources.convert import OpenEnum, Resource


class ModelKind(OpenEnum):
    """Out of the catalogue, or the outcome of a job."""

    BASE = "BASE"
    TUNED = "TUNED"


@dataclass(frozen=True, kw_only=True)
class Model(Resource):
    """A model that a job can start from. `id` is what `base_model` takes; counts are 0 where not known."""

    id: str
    kind: ModelKind
    description: str
    revision: str
    base_model: str
    num_parameters: int
    context_length: int
    license: str
    create_time: datetime | None
