"""Base models and tuned models."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetuneflow.resources.convert import OpenEnum, Resource
from finetuneflow.resources.stage_result import GateDecision


class ModelKind(OpenEnum):
    """Kind of a model."""

    BASE = "BASE"
    """A base model of the catalogue."""
    TUNED = "TUNED"
    """The result of a job."""


@dataclass(frozen=True, kw_only=True)
class Model(Resource):
    """A base or tuned model."""

    id: str
    """Id to use as a spec's base_model: an alias, `org/name`, or `ft:<job_id>`."""
    kind: ModelKind
    """Kind of the model."""
    description: str
    """Description and origin of the model, in one sentence."""
    revision: str
    """For base models: the commit or package version. For tuned models: the best step of the training."""
    base_model: str
    """For tuned models: id of the base model."""
    num_parameters: int
    """Number of parameters; 0 if unknown without the model's files."""
    context_length: int
    """Maximum sequence length in tokens; 0 if unknown without the model's files."""
    license: str
    """License of the weights, as an SPDX id if one exists."""
    create_time: datetime | None
    """For tuned models: time at which the package was accepted."""
    gate_decision: GateDecision | None
    """For tuned models: decision of the gate of the job's own evaluation. None without one."""
    shown_regression: str
    """For tuned models: what the model has lost by the regression set, in one sentence. Empty if nothing is shown."""
