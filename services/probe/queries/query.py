"""Defines the request file of the child program."""

from pathlib import Path
from typing import Any

from pydantic import Field

from chassis.child.query import Query
from engine.data.work_limits import WorkLimits
from services.child_input import ModelFiles, Strict
from services.probe.hub_sources import HubSource


class PreflightFacts(Strict):
    """The facts that a preflight needs beside the model's tokenizer and the rows."""

    config: dict[str, Any]
    """The base model's config.json."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of each tensor of the base model, by name."""
    missing_bytes: int
    """Size of the base model's weights that are not on this machine."""
    hub: list[HubSource]
    """The datasets of the request that were downloaded from a hub, under their pinned names."""
    hardware: dict[str, Any]
    """The machine to plan for: `finetuneflow.v1.Hardware` as proto JSON."""
    holds_artifacts: bool
    """True if the artifact store is on the disk that training writes to."""
    prices: Path | None
    """The operator's price table; None for the built-in one."""


class Fetched(Strict):
    """Everything a query needs that takes the network, the hub token or the settings of the probe."""

    model: ModelFiles
    """The base model. Its tokenizer is in `path`; its weights need not be."""
    processes: int = Field(ge=1)
    """Processes that tokenise a large file."""
    limits: WorkLimits
    preflight: PreflightFacts | None = None
    """Set for PreflightFineTuningJob."""


class ProbeQuery(Query):
    """The request file of `python -m services.probe.queries`.

    The methods are those of `ProbeService` and `DatasetService`, and CountTokens: it takes an EstimateResourcesRequest
    whose spec names the data, and returns a ValidationReport with the statistics of training and held-out rows.
    """

    fetched: Fetched | None = None
    """None: the child fetches it. The child of a serving probe has no network and no credentials, so there the
    probe fetches it."""

    @property
    def provided(self) -> Fetched:
        """`fetched`, for a query that has been through `fetch`."""
        if self.fetched is None:
            raise ValueError(f"{self.method} was not fetched")
        return self.fetched
