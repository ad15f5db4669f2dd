"""Defines the input file of a preflight child."""

from pathlib import Path
from typing import Any

from pydantic import Field

from engine.config.job import JobConfig
from engine.config.start import TrainedData
from engine.data.work_limits import WorkLimits
from services.child_input import ChildInput, ModelFiles
from services.probe.hub_sources import HubSource


class PreflightInput(ChildInput):
    """Everything a preflight needs."""

    config: JobConfig
    """The job's configuration: its recipe merged, hub datasets pinned, automatic values still automatic."""
    given: dict[str, Any]
    """The fields that the caller set, in the form of `engine.config.spec_proto.spec_to_dict`."""
    model: ModelFiles
    sources: dict[str, Path]
    """Dataset id → file, which keeps the name with which it was uploaded."""
    requests: Path | None = None
    """Folder in out_dir in which the child asks for the files of a streamed corpus; None if they are there."""
    hub: list[HubSource] = Field(default=[])
    """The entries of `sources` that come from a hub, under their names in `config`."""
    content_key: str = ""
    """The key that the token shards depend on (`engine.data.content_key`); empty: the child computes it."""
    shards: Path | None = None
    """A folder of verified token shards with that key, made by an earlier job; the child reuses them."""
    trained_data: list[TrainedData] = Field(default=[])
    """The data of the adapter that the job starts from, and of those below it."""
    processes: int = Field(default=1, ge=1)
    """Processes that tokenise a large file."""
    limits: WorkLimits = WorkLimits()
    node_id: str = ""
    hardware: dict[str, Any] | None = None
    """`finetuneflow.v1.Hardware` as proto JSON; None: the child's own machine."""
    observed: list[dict[str, Any]] = Field(default=[])
    """`finetuneflow.v1.ObservedSpeed` as proto JSON."""
    prices: Path | None = None
    """The operator's price table; None for the built-in one."""
    holds_artifacts: bool = True
    """True if the artifact store is on the disk that training writes to."""
